"""Differentiable cache augmentation: points are independent, only the coprocessor learns, and it can."""

from __future__ import annotations

import pytest
import torch

from tests.context.tiny import tiny
from vistok.context.augmentation import (
    Coprocessor,
    augmentation_layout,
    augmentation_loss,
    augmented_prompt,
    plain_loss,
)
from vistok.errors import VistokError


def texts(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_points_of_one_pass_are_those_of_passes_of_their_own(kind):
    model, ids = tiny(kind), texts()
    coprocessor = Coprocessor(model, 3)
    points = torch.tensor([4, 9, 17])
    together = augmentation_loss(model, coprocessor, ids, points, 4)
    alone = torch.stack([augmentation_loss(model, coprocessor, ids, point[None], 4) for point in points])
    assert torch.allclose(together, alone.mean(), atol=1e-5)


def test_the_text_behind_a_point_does_not_reach_its_latents():
    model, ids = tiny(), texts()
    coprocessor, points = Coprocessor(model, 3), torch.tensor([8])
    other = ids.clone()
    other[:, 13:] = 5
    losses = [augmentation_loss(model, coprocessor, each, points, 4) for each in (ids, other)]
    assert torch.allclose(*losses, atol=1e-6)


def test_only_the_coprocessor_learns_and_it_does():
    model, ids = tiny(layers=2).requires_grad_(False), texts()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    coprocessor, points = Coprocessor(model, 4), torch.tensor([5, 12])
    optimizer = torch.optim.AdamW(coprocessor.parameters(), lr=3e-3)
    start = float(plain_loss(model, ids, points, 6))
    for _ in range(30):
        optimizer.zero_grad()
        loss = augmentation_loss(model, coprocessor, ids, points, 6)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * start
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_points_outside_the_text_are_refused():
    with pytest.raises(VistokError, match="tokens behind each"):
        augmentation_layout(12, torch.tensor([9]), 2, 4)


def test_a_prompt_with_latents_continues_as_the_loss_reads_it():
    model, ids = tiny(), texts(2, 12)
    coprocessor = Coprocessor(model, 3).eval()
    prompt = augmented_prompt(model, coprocessor, ids[:, :8])
    assert prompt.shape == (2, 8 + 3, 64)
    behind = model(inputs_embeds=prompt).logits[:, -1].float()
    loss = augmentation_loss(model, coprocessor, ids, torch.tensor([7]), 1)
    assert torch.allclose(torch.nn.functional.cross_entropy(behind, ids[:, 8]), loss, atol=1e-5)
    assert model.generate(inputs_embeds=prompt, max_new_tokens=4, do_sample=False).shape == (2, 4)
