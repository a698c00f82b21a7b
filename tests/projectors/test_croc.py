"""Croc: the best replacement, the mask as told, strict loading of published keys, normalisation that is kept."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from safetensors.torch import save_file

from tests.train.small_llava import small_llava
from vistok.errors import VistokError
from vistok.projectors.learned.croc import (
    PromptPool,
    Reconstruction,
    choose,
    croc_state,
    mixed_mask,
    normalize_projector,
    normalize_visual,
    read_croc,
    reconstruction_loss,
    splice,
)
from vistok.train.tasks.scenes.llava import load_llava


def test_the_assignment_is_the_best_one_to_one():
    torch.manual_seed(0)
    pool, tokens = PromptPool(6, 5).requires_grad_(False), normalize_visual(torch.randn(3, 7, 5))
    chosen = choose(3, 7, keep=3, generator=torch.Generator().manual_seed(1))
    index = pool.match(tokens, chosen)
    assert torch.equal(index >= 0, chosen)
    for row in range(3):
        cosine = tokens[row, chosen[row]] @ normalize_visual(pool.mask_token).T
        best = max(sum(cosine[i, j] for i, j in enumerate(order)) for order in permutations(range(6), 4))
        taken = index[row, chosen[row]]
        assert len(set(taken.tolist())) == 4
        assert float(sum(cosine[i, j] for i, j in enumerate(taken))) == pytest.approx(float(best), abs=1e-5)


def test_a_small_pool_leaves_tokens_as_they_are():
    pool, tokens = PromptPool(2, 5), normalize_visual(torch.randn(1, 7, 5))
    index = pool.match(tokens, torch.ones(1, 7, dtype=torch.bool))
    assert (index >= 0).sum() == 2
    assert torch.equal(pool.replace(tokens, index)[index < 0], tokens[index < 0])
    assert (pool.match(tokens, torch.ones(1, 7, dtype=torch.bool), reference=True) >= 0).all()


def test_gradient_reaches_the_prompt_tokens_that_were_used():
    pool, tokens = PromptPool(4, 5), normalize_visual(torch.randn(1, 3, 5))
    index = pool.match(tokens, torch.tensor([[True, True, False]]))
    pool.replace(tokens, index).sum().backward()
    used = set(index[index >= 0].tolist())
    assert {i for i, row in enumerate(pool.mask_token.grad) if row.abs().sum() > 0} == used


def test_the_released_mask_needs_labels():
    here = torch.ones(1, 4)
    with pytest.raises(VistokError, match="labels"):
        mixed_mask(here.bool(), here.long(), reference=True)


@pytest.mark.parametrize("count", [0, 2])
def test_a_prompt_without_its_one_picture_is_refused(count):
    ids = torch.tensor([[1] + [-200] * count + [2]])
    with pytest.raises(VistokError, match=f"{count} image tokens"):
        splice(ids, torch.ones_like(ids), ids, torch.zeros(3, 4), torch.zeros(1, 2, 4))


def test_the_head_refuses_pictures_of_other_sizes():
    head = Reconstruction(8, tokens=4, heads=2)
    with pytest.raises(VistokError, match="4 visual tokens"):
        head(torch.zeros(1, 6, 8), torch.tensor([[True] * 5 + [False]]))


def test_more_tokens_than_there_are_cannot_stay():
    with pytest.raises(VistokError, match="0 to 4"):
        choose(1, 4, keep=5)


def test_pool_and_head_load_strictly_from_a_whole_checkpoint(tmp_path):
    pool, head = PromptPool(5, 64), Reconstruction(64, tokens=9)
    state = croc_state(pool, head)
    assert {
        "model.mask_token",
        "transform_block.layers.0.output.LayerNorm.bias",
        "transform_block.resize.weight",
    } <= set(state)
    path = tmp_path / "model.safetensors"
    save_file({**state, "model.embed_tokens.weight": torch.zeros(2, 64)}, path)
    again = read_croc(path)
    assert torch.equal(again[0].mask_token, pool.mask_token)
    hidden, image = torch.randn(2, 11, 64), torch.arange(11).expand(2, -1) < 9
    assert torch.equal(again[1].eval()(hidden, image), head.eval()(hidden, image))
    del state["transform_block.resize.bias"]
    save_file(state, path)
    with pytest.raises(VistokError, match="resize"):
        read_croc(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(VistokError, match="no pool"):
        read_croc(path)


def test_no_gradient_reaches_the_targets():
    restored, targets = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    reconstruction_loss(restored, targets).backward()
    assert targets.grad is None and restored.grad.abs().sum() > 0


def test_normalisation_travels_with_the_model(tmp_path):
    llava = load_llava(small_llava(tmp_path / "plain"))
    features = torch.randn(1, 4, llava.config.vision_config.hidden_size)
    assert (llava.model.multi_modal_projector(features).norm(dim=-1) - 1).abs().max() > 0.01
    normalize_projector(llava)
    llava.save_pretrained(tmp_path / "croc")
    again = load_llava(str(tmp_path / "croc"))
    for model in (llava, again):
        assert torch.allclose(model.model.multi_modal_projector(features).norm(dim=-1), torch.ones(1, 4), atol=1e-5)
