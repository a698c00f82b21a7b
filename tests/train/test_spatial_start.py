"""1D tokenizers that start with a place for every token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError
from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.flextok_config import FlexTokConfig
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.train.tasks.starts import flextok, one_d_piece
from vistok.train.tasks.starts.spatial import (
    dithering_order,
    fit_by_least_squares,
    whiten_positions,
)


def test_any_prefix_of_the_order_is_spread_evenly():
    order = dithering_order(8)
    assert sorted(order.tolist()) == list(range(64))
    for count, cell in ((4, 4), (16, 2)):  # one place in every cell of a coarser grid
        rows, columns = order[:count] // 8 // cell, order[:count] % 8 // cell
        assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == count
    with pytest.raises(VistokError, match="power of two"):
        dithering_order(6)


def test_least_squares_finds_a_linear_map():
    torch.manual_seed(0)
    states, truth = torch.randn(100, 6), nn.Linear(6, 2)
    fitted = nn.Linear(6, 2)
    fit_by_least_squares(fitted, states, truth(states), ridge=1e-9)
    assert torch.allclose(fitted.weight, truth.weight, atol=1e-4)
    assert torch.allclose(fitted.bias, truth.bias, atol=1e-4)


def test_whitened_positions_have_nothing_in_common():
    torch.manual_seed(0)
    places = 0.1 * torch.randn(16, 48) + torch.randn(48)  # all alike
    weight = torch.empty(48, 48)
    whiten_positions(weight, places)
    told = nn.functional.normalize((places - places.mean(0)) @ weight.T, dim=1)
    others = (told @ told.T)[~torch.eye(16, dtype=torch.bool)]
    assert others.abs().max() < 0.1


def test_a_tokenizer_starts_with_local_tokens():
    torch.manual_seed(0)
    config = TiTokConfig(
        encoder=(192, 2, 3), decoder=(192, 2, 3), num_tokens=64, codebook_size=256, token_size=8, l2_norm=True,
        legacy=False, pixel_decoder=False, variable_length=True, image_size=64, patch_size=8,
    )  # fmt: skip
    tokenizer = TiTok(config)
    images = render(sample_scenes(64, seed=3), 64)
    anchor = one_d_piece.OrderedPatches(config, images)
    with pytest.raises(VistokError, match="l2_norm"):
        one_d_piece.OrderedPatches(replace(config, l2_norm=False), images)
    one_d_piece.start_spatially(tokenizer, anchor, images, torch.Generator().manual_seed(0))
    assert tokenizer.encode(images).unique().numel() > 100
    points = nn.functional.normalize(tokenizer.latents(images)[:, :, 0], dim=1)
    assert (points - anchor(images)).square().sum(1).mean() < 0.5 * (anchor(images[:1]) - anchor(images)).square().sum(
        1
    ).mean()
    before = tokenizer.latents(images)[:, :, 0]
    for token in (0, 40):
        row, column = divmod(int(dithering_order(8)[token]), 8)
        changed = images.clone()
        changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
        moved = (tokenizer.latents(changed)[:, :, 0] - before).norm(dim=1).mean(0)
        assert moved.argmax() == token
        assert moved[token] > 3 * moved.median()
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    error = (tokenizer.decode(tokenizer.encode(images)) - images).square().mean()
    assert error < 0.9 * (mean - images).square().mean()


def test_a_flow_tokenizer_starts_by_painting_its_tokens():
    torch.manual_seed(0)
    config = FlexTokConfig(
        encoder=(128, 2), decoder=(128, 2), head_dim=64, groups=1, registers=32, levels=(4, 4, 4, 4, 4),
        latent_channels=8, latent_size=16, patch=2, time_features=64, vae=False,
    )  # fmt: skip
    tokenizer = FlexTok(config)
    maps = nn.functional.interpolate(torch.randn(64, 8, 8, 8), scale_factor=2)
    anchor = flextok.OrderedComponents(config, maps)
    flextok.start_spatially(tokenizer, anchor, maps, torch.Generator().manual_seed(0))
    draws = tokenizer.draw(64, torch.Generator().manual_seed(1))
    draws = draws._replace(null=torch.zeros_like(draws.null))

    def loss(keep):
        with torch.no_grad():
            return tokenizer.training_pass(maps, draws._replace(keep=torch.full_like(draws.keep, keep))).loss

    assert len(tokenizer.training_pass(maps, draws).indices.unique()) > 100
    assert loss(32) < loss(8) < loss(1) < 0.7 * (draws.noise - maps).square().mean()
