"""The embedded generator of 1D tokens."""

from __future__ import annotations

import torch

import vistok
from tests.colours import main_colour
from vistok.data.scenes import COLOURS


def test_the_colour_of_the_caption_is_painted_at_any_length():
    colours = ["red", "yellow", "blue"]
    prompts = [f"a photo of three {colour} circles" for colour in colours]
    whole = vistok.pipeline(tokenizer="one-d-piece")(prompts, seed=0)
    assert [COLOURS[main_colour(image)] for image in whole.images] == colours
    start = vistok.pipeline(tokenizer="one-d-piece", tokens=16)(prompts, seed=0)
    assert [COLOURS[main_colour(image)] for image in start.images] == colours
    assert torch.equal(start.tokens, whole.tokens[:, :16])
