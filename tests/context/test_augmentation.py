"""Differentiable cache augmentation: points are independent, only the coprocessor learns, and it can."""

from __future__ import annotations

import pytest
import torch

from tests.context.tiny import tiny
from vistok.context.augmentation import (
    Coprocessor,
    augmentation_layout,
    augmentation_loss,
    augmented_losses,
    augmented_prompt,
    plain_loss,
    plain_losses,
)
from vistok.errors import VistokError

REPEATS = [False, True]


def texts(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def coprocessor_of(model, latents: int, repeats: bool) -> Coprocessor:
    """Returns one whose latents are no mere repetition."""
    coprocessor = Coprocessor(model, latents, repeats)
    if repeats:
        torch.nn.init.normal_(coprocessor.change.weight)
    return coprocessor


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_points_of_one_pass_are_those_of_passes_of_their_own(kind, repeats):
    model, ids = tiny(kind), texts()
    coprocessor = coprocessor_of(model, 3, repeats)
    points = torch.tensor([2, 9, 17])
    together = augmented_losses(model, coprocessor, ids, points, 4)
    alone = torch.cat([augmented_losses(model, coprocessor, ids, point[None], 4) for point in points], 1)
    assert together.shape == (2, 3, 4)
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("repeats", REPEATS)
def test_the_text_behind_a_point_does_not_reach_its_latents(repeats):
    model, ids = tiny(), texts()
    coprocessor, points = coprocessor_of(model, 3, repeats), torch.tensor([8])
    other = ids.clone()
    other[:, 13:] = 5
    losses = [augmentation_loss(model, coprocessor, each, points, 4) for each in (ids, other)]
    assert torch.allclose(*losses, atol=1e-6)


@pytest.mark.parametrize("repeats", REPEATS)
def test_only_the_coprocessor_learns_and_it_does(repeats):
    model, ids = tiny(layers=2).requires_grad_(False), texts()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    coprocessor, points = Coprocessor(model, 4, repeats), torch.tensor([5, 12])
    optimizer = torch.optim.AdamW(coprocessor.parameters(), lr=3e-3)
    start = float(plain_loss(model, ids, points, 6))
    for _ in range(30):
        optimizer.zero_grad()
        loss = augmentation_loss(model, coprocessor, ids, points, 6)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * start
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_repeated_words_lose_nothing_before_anything_is_learnt(kind):
    model, ids, points = tiny(kind), texts(), torch.tensor([2, 11, 18])
    losses = augmented_losses(model, Coprocessor(model, 3, repeats=True), ids, points, 5)
    assert torch.allclose(losses, plain_losses(model, ids, points, 5), atol=1e-5)


def test_repeated_words_keep_their_positions_and_hide_what_they_repeat():
    layout = augmentation_layout(12, torch.tensor([2, 6]), 3, 2, back=3)
    assert layout.coprocessor_positions.tolist() == [0, 1, 2, 4, 5, 6]
    assert layout.decoder_positions.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert layout.coprocessor_mask[:, :12].sum(1).tolist() == [3, 3, 3, 7, 7, 7]
    assert layout.decoder_mask[:, :12].sum(1).tolist() == [0] * 5 + [4] * 5


@pytest.mark.parametrize(("point", "back"), [(9, 0), (-1, 0), (2, 4)])
def test_points_outside_the_text_are_refused(point, back):
    with pytest.raises(VistokError, match=f"{point}.*4 tokens behind each"):
        augmentation_layout(12, torch.tensor([point]), 2, 4, back)


@pytest.mark.parametrize("repeats", REPEATS)
def test_a_prompt_with_latents_continues_as_the_loss_reads_it(repeats):
    model, ids = tiny(), texts(2, 14)
    coprocessor = coprocessor_of(model, 3, repeats).eval()
    prompt = augmented_prompt(model, coprocessor, ids[:, :8])
    assert prompt.shape == (2, 8 if repeats else 8 + 3, 64)
    behind = model(inputs_embeds=prompt).logits[:, -1].float()
    loss = augmentation_loss(model, coprocessor, ids, torch.tensor([7]), 1)
    assert torch.allclose(torch.nn.functional.cross_entropy(behind, ids[:, 8]), loss, atol=1e-5)
    found = model.generate(inputs_embeds=prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    likeliest = torch.cat([ids[:, :8], found, ids[:, :1]], 1)
    rivals = likeliest.clone()
    rivals[:, 11] = (rivals[:, 11] + 1) % 97
    told, other = (augmented_losses(model, coprocessor, x, torch.tensor([7]), 4)[..., -1] for x in (likeliest, rivals))
    assert bool((told < other).all())
