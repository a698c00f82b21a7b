"""Generators of masked codes: strict loading of the published layout, and what re-use changes and what it does not."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.enat import ENAT, ENATConfig
from vistok.models.maskgit import MaskGIT, MaskGITConfig
from vistok.ops.rope import rope_places
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig

SMALL = {"grid": 4, "codebook_size": 11, "num_classes": 5, "embed_dim": 16, "num_heads": 2}
KINDS = {
    "enat": (ENAT, ENATConfig, {"enc_depth": 2, "dec_depth": 1}),
    "maskgit": (MaskGIT, MaskGITConfig, {"depth": 2}),
}


def small(name: str, **overrides):
    """A network whose weights are all noise: the zeros of a new one would hide what they gate."""
    kind, config, shape = KINDS[name]
    model = kind(config(**SMALL, **shape, **overrides)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


@pytest.mark.parametrize(("preset", "millions", "entries"), [("ENAT-L", 574.3, 358), ("ENAT-B", 219.6, 246)])
def test_published_shapes(preset, millions, entries) -> None:
    with torch.device("meta"):
        model = ENAT.from_preset(preset)
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.06
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("wrapped", [False, True])
def test_published_files_load_strictly(tmp_path, wrapped) -> None:
    model, path = small("enat"), tmp_path / "nnet_ema.pth"
    state = model.state_dict() | {"x_embedder.position_ids": torch.arange(16)}
    torch.save({f"module.{key}": value for key, value in state.items()} if wrapped else state, path)
    loaded = ENAT.from_pretrained(path, preset="ENAT-L", **SMALL, enc_depth=2, dec_depth=1)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    del state["prev_embedder.fc1.weight"]  # computes nothing, but the published files have it
    torch.save(state, path)
    with pytest.raises(VistokError, match=r"prev_embedder\.fc1\.weight"):
        ENAT.from_pretrained(path, preset="ENAT-L", **SMALL, enc_depth=2, dec_depth=1)


@pytest.mark.parametrize("name", KINDS)
def test_saved_models_come_back(tmp_path, name) -> None:
    model = small(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    codes, labels = torch.randint(12, (1, 16)), torch.tensor([2])
    assert torch.equal(loaded(codes, labels), model(codes, labels))


def published_names(state: dict) -> dict:
    """The names of MAGE's tokenizer."""
    pairs = ((".mid.0.", ".mid.block_1."), (".mid.1.", ".mid.block_2."), (".upsample_conv.", ".upsample.conv."))
    for ours, theirs in pairs:
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    return state


def test_both_published_names_of_the_tokenizer_load_strictly(tmp_path) -> None:
    config = MaskGITVQGANConfig(16, 4, 32, (1, 1))
    tokenizer = MaskGITVQGAN(config).eval()
    shape = {"codebook_size": 16, "codebook_dim": 4, "channels": 32, "channel_mult": (1, 1)}
    codes = torch.randint(16, (1, 4, 4))
    for number, state in enumerate((tokenizer.state_dict(), published_names(tokenizer.state_dict()))):
        path = tmp_path / f"{number}.ckpt"
        torch.save({"state_dict": state}, path)
        loaded = MaskGITVQGAN.from_pretrained(path, "MaskGIT-VQGAN", **shape)
        assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    both = tokenizer.state_dict() | published_names(tokenizer.state_dict())
    torch.save(both, path)
    with pytest.raises(VistokError, match="twice"):
        MaskGITVQGAN.from_pretrained(path, "MaskGIT-VQGAN", **shape)


@pytest.fixture
def steps():
    """Codes of two pictures, and which are visible in three steps."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(11, (2, 16), generator=generator)
    ranks = torch.rand(2, 16, generator=generator).argsort(1).argsort(1)
    return codes, [ranks < count for count in (3, 7, 12)]


@torch.no_grad()
def test_a_state_without_visible_codes_is_none(steps) -> None:
    codes, (visible, *_) = steps
    model, labels = small("enat"), torch.tensor([0, 4])
    empty = model.predict(torch.full_like(codes, model.mask_id), labels)[1]
    fed = codes.masked_fill(~visible, model.mask_id)
    assert torch.equal(model(fed, labels, empty), model(fed, labels))


@torch.no_grad()
def test_revealed_codes_change_what_is_predicted_and_older_ones_are_not_encoded_again(steps) -> None:
    codes, masks = steps
    model, labels, state = small("enat"), torch.tensor([0, 4]), None
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].shape[1]))
    for visible in masks:
        logits, state = model.predict(codes.masked_fill(~visible, model.mask_id), labels, state)
        assert logits.shape == (2, 16, 11)
    assert seen == [3, 4, 5]
    assert not torch.allclose(logits, model(codes.masked_fill(~masks[-1], model.mask_id), labels))


@pytest.mark.parametrize("name", KINDS)
def test_modulations_of_a_low_rank_begin_as_nothing_and_learn(name) -> None:
    kind, config, shape = KINDS[name]
    model, whole = (kind(config(**SMALL, **shape, modulation_rank=rank)).eval() for rank in (3, 0))
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    codes = torch.tensor([[*range(11), *[model.mask_id] * 5]])
    plain, other = (model(codes, torch.tensor([label])) for label in (1, 2))
    assert torch.equal(plain, other)
    model(codes, torch.tensor([1]))[..., 0].sum().backward()
    assert all(bool(block.adaLN_modulation[-1].weight.grad.any()) for block in model.blocks)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0), std=0.25)
    rank = torch.linalg.matrix_rank(
        torch.cat([model.blocks[0].adaLN_modulation(model.y_embedder(torch.tensor([n]))) for n in range(5)]).diff(dim=0)
    )
    assert int(rank) <= 3 and not torch.allclose(*(model(codes, torch.tensor([n])) for n in (1, 2)))


@torch.no_grad()
def test_rows_must_hide_the_same_number() -> None:
    codes = torch.zeros(2, 16, dtype=torch.int64)
    codes[0, 0] = 11
    with pytest.raises(VistokError, match="same number"):
        small("enat")(codes, torch.tensor([0, 1]))


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_that_computes_something_trains(name, steps) -> None:
    codes, (first, second, _) = steps
    model, labels = small(name).train(), torch.tensor([0, 4])
    state = model.predict(codes.masked_fill(~first, model.mask_id), labels)[1]
    model(codes.masked_fill(~second, model.mask_id), labels, state).square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert all(n.startswith("prev_embedder.") for n in silent)


@pytest.mark.parametrize("name", KINDS)
def test_the_table_of_codes_learns_from_the_head(name) -> None:
    model = small(name)
    model(torch.full((1, 16), model.mask_id), torch.tensor([1])).square().mean().backward()
    assert bool((model.x_embedder.word_embeddings.weight.grad[: model.mask_id] != 0).any(1).all())


@pytest.mark.parametrize("name", KINDS)
def test_a_new_network_tells_codes_apart(name) -> None:
    kind, config, shape = KINDS[name]
    model = kind(config(embed_dim=96, **shape))
    assert 0.3 < model(torch.zeros(1, 256, dtype=torch.int64), torch.tensor([1])).std().item() < 3


def test_places_begin_as_waves_by_which_neighbours_are_found() -> None:
    model = MaskGIT(MaskGITConfig(grid=8, codebook_size=11, embed_dim=30, num_heads=2, depth=1))
    table = model.x_embedder.position_embeddings.weight
    assert torch.allclose(table.norm(dim=1), torch.ones(64))
    alike = (table @ table.T).unflatten(0, (8, 8)).unflatten(2, (8, 8))
    assert alike[3, 3].flatten().topk(5).indices.sort().values.tolist() == [19, 26, 27, 28, 35]  # it and its neighbours
    assert torch.allclose(alike[2, 2, 3, 5], alike[4, 1, 5, 4], atol=1e-6)  # by how far they are apart


def run(model, codes, masks, order):
    """Logits of three steps whose places, and with them all that tells places apart, are in another order."""
    model.x_embedder.position_embeddings.weight.copy_(model.x_embedder.position_embeddings.weight[order])
    model.rope = model.rope[order]
    state, found = None, []
    for visible in masks:
        logits, state = model.predict(codes.masked_fill(~visible, model.mask_id)[:, order], torch.tensor([0, 4]), state)
        found.append(logits)
    return torch.stack(found)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_rotary_encoding_turns_every_code_by_its_own_place(name, steps) -> None:
    plain, expected = (run(small(name, rope_base=base), *steps, torch.arange(16)) for base in (3.0, 100.0))
    assert not torch.allclose(plain, expected, atol=1e-3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    found = run(small(name, rope_base=100.0), *steps, order)
    assert torch.allclose(found, expected[:, :, order], atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_rotary_encoding_tells_how_far_codes_are_apart_and_nothing_else(name, steps) -> None:
    model, moved = small(name, rope_base=100.0), small(name, rope_base=100.0)
    moved.rope = rope_places(torch.cartesian_prod(torch.arange(4), torch.arange(4)) + torch.tensor([5, 2]), 8, 100.0)
    everywhere = torch.arange(16)
    assert torch.allclose(run(moved, *steps, everywhere), run(model, *steps, everywhere), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_rotary_encoding_is_no_part_of_the_weights(name) -> None:
    assert set(small(name, rope_base=100.0).state_dict()) == set(small(name).state_dict())
    assert small(name).to(torch.bfloat16).rope is None
