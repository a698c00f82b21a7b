"""The embedded 1D tokens and their generator."""

from __future__ import annotations

import torch

import vistok
from tests.colours import main_colour
from vistok.data.scenes import COLOURS, render, sample_scenes
from vistok.eval.reconstruction.rate_distortion import powers_of_two, quality_by_tokens
from vistok.tokenizers import load_tokenizer


def test_the_colour_of_the_caption_is_painted_at_any_length():
    colours = ["red", "yellow", "blue"]
    prompts = [f"a photo of three {colour} circles" for colour in colours]
    whole = vistok.pipeline(tokenizer="one-d-piece")(prompts, seed=0)
    assert [COLOURS[main_colour(image)] for image in whole.images] == colours
    start = vistok.pipeline(tokenizer="one-d-piece", tokens=16)(prompts, seed=0)
    assert [COLOURS[main_colour(image)] for image in start.images] == colours
    assert torch.equal(start.tokens, whole.tokens[:, :16])


def test_every_token_more_is_worth_something():
    tokenizer = load_tokenizer("one-d-piece").tokenizer
    points = quality_by_tokens(tokenizer, [render(sample_scenes(32, 99))], powers_of_two(256))
    psnr = [point.psnr for point in points]
    assert psnr == sorted(psnr) and psnr[-1] > 29.5
