"""ControlAR: published files load strictly, and where, how much and with what the control counts."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.controlar import ControlAR, ControlARConfig
from vistok.models.interface import Condition, Control
from vistok.samplers import Noise, SamplingParams, parse_sampler
from vistok.samplers.targets.controlar import ControlTarget

SMALL = {
    "dim": 16,
    "n_layer": 4,  # no multiple of the three depths
    "n_head": 2,
    "multiple_of": 8,
    "vocab_size": 32,
    "block_size": 16,
    "adapter_width": 16,
    "adapter_depth": 1,
    "adapter_heads": 2,
    "adapter_mlp_ratio": 2,
}
KINDS = {
    "t2i": {"cls_token_num": 4, "caption_dim": 6, "adapter_image_size": 56, "controls": ("canny", "depth")},
    "c2i": {"num_classes": 5, "adapter_image_size": 64},
}


def small(kind: str = "c2i", **more) -> ControlAR:
    """A network whose weights are all noise: a new one's head is zero."""
    torch.manual_seed(0)
    model = ControlAR(ControlARConfig(model_type=kind, **SMALL, **KINDS[kind], **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def condition_of(model: ControlAR, batch: int, *controls: Control) -> Condition:
    if model.conditional_on == "class":
        return Condition(torch.arange(batch) % model.classes, control=controls)
    features = torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(batch, 4)
    mask[0, :2] = 0
    return Condition(features, mask, controls)


def draw(model, *controls, batch=2, sampler="ar", guidance=2.0, temperature=0.0):
    params = SamplingParams(guidance, temperature=temperature)
    condition = condition_of(model, batch, *controls)
    return parse_sampler(sampler).prepare(model).sample(model, condition, params, Noise(0, torch.arange(batch)))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_published_names_load_and_are_saved(tmp_path, kind) -> None:
    model = small(kind)
    state = model.state_dict()
    assert any(key.endswith(".attention.attention.query.weight") for key in state)
    assert not any("q_proj" in key or key.startswith("adapter.model.layers.") for key in state)
    path = tmp_path / "control.pt"
    torch.save({"model": state}, path)
    overrides = {"model_type": kind, **SMALL, **KINDS[kind]}
    loaded = ControlAR.from_pretrained(path, preset="ControlAR-B", **overrides)
    model.save_pretrained(tmp_path / "saved")
    for other in (loaded, ControlAR.from_pretrained(tmp_path / "saved")):
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    name = next(key for key in state if "attention.query" in key)
    del state[name]
    torch.save({"model": state}, path)
    with pytest.raises(VistokError, match="query"):  # and not a random encoder, as names that do not match once gave
        ControlAR.from_pretrained(path, preset="ControlAR-B", **overrides)


def test_a_table_of_another_size_is_refused(tmp_path) -> None:
    path = tmp_path / "control.pt"
    torch.save(small().state_dict(), path)
    overrides = {**SMALL, **KINDS["c2i"], "block_size": 36}
    with pytest.raises(VistokError, match="uncond_embedding"):
        ControlAR.from_pretrained(path, preset="ControlAR-B", **overrides)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 256), (32, 48)])
@torch.no_grad()
def test_any_size_whose_product_fits(kind, size) -> None:
    model = small(kind).resized(*size)
    drawn = draw(model, Control(picture(*size), "canny"))
    rows, columns = size[0] // 16, size[1] // 16
    assert model.tokens.length == rows * columns and model.tokens.line == columns
    assert model.image_tokens(drawn).shape == (2, rows, columns)


@pytest.mark.parametrize(("size", "said"), [((80, 64), "20 tokens.*16"), ((60, 64), "whole"), ((0, 64), "whole")])
def test_sizes_that_do_not_fit_are_refused(size, said) -> None:
    with pytest.raises(VistokError, match=said):
        small().resized(*size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_strength_counts_with_and_without_guidance(kind, guidance) -> None:
    model, edges = small(kind), picture()

    def logits(*controls):
        return ControlTarget(model, condition_of(model, 2, *controls), SamplingParams(guidance)).prefill().logits

    none = logits()
    weak, strong = (logits(Control(edges, "canny", strength)) for strength in (0.5, 1.0))
    assert not torch.allclose(none, strong) and not torch.allclose(weak, strong)
    torch.testing.assert_close(logits(Control(edges, "canny", 0.0)), none)
    assert torch.equal(logits(), none)  # a call leaves nothing behind


@torch.no_grad()
def test_controls_add_up() -> None:
    model = small("t2i")
    first, second = Control(picture(seed=1), "canny", 0.7), Control(picture(seed=2), "depth", 0.4)
    both = model.streams([first, second])
    for layer, stream in both.items():
        parts = [model.streams([each])[layer] for each in (first, second)]
        torch.testing.assert_close(stream, parts[0] + parts[1])
    assert sorted(both) == [0, 1, 2]


@torch.no_grad()
def test_kinds_that_lose_by_mixing_are_resized_without() -> None:
    model, edges = small("t2i"), (picture() > 0).float()
    crisp, smooth = (model.adapter.resize(edges, c) for c in (True, False))
    assert crisp.shape == smooth.shape == (1, 3, 56, 56)
    assert set(crisp.unique().tolist()) == {0.0, 1.0} and len(smooth.unique()) > 2
    mixed = small("t2i", crisp=False)  # as the published base weights
    layer = 0
    assert not torch.equal(
        mixed.streams([Control(edges, "canny")])[layer], model.streams([Control(edges, "canny")])[layer]
    )
    depth = Control(edges, "depth")
    assert torch.equal(mixed.streams([depth])[layer], model.streams([depth])[layer])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_logits_are_those_of_one_pass(kind) -> None:
    model, control = small(kind), Control(picture(), "canny", 0.6)
    condition = condition_of(model, 2)
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(4))
    want = model(tokens[:, :-1], condition.values, condition.mask, [control])
    state = model.new_state(2)
    state.added = {layer: stream.expand(2, -1, -1) for layer, stream in model.streams([control]).items()}
    got = [model.head(model.prefill(condition.values, state, condition.mask)[:, -1:])]
    got.append(model.head(model.decode(tokens[:, :5], torch.arange(5), state)))
    state.cache.advance(5)
    got.append(model.head(model.decode(tokens[:, 5:-1], torch.arange(5, 15), state)))
    torch.testing.assert_close(torch.cat(got, 1), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("sampler", "temperature"), [("sjd:window=6", 0.0), ("recycling", 0.0), ("recycling", 1.0)])
@torch.no_grad()
def test_lossless_samplers_follow_the_control_as_plain_decoding_does(sampler, temperature) -> None:
    model, control = small(), Control(picture(), "canny")
    plain = draw(model, control, temperature=temperature)
    assert torch.equal(draw(model, control, sampler=sampler, temperature=temperature), plain)


def test_training_drops_condition_and_control_together() -> None:
    model = small(class_dropout_prob=1.0, token_dropout_p=0, resid_dropout_p=0, ffn_dropout_p=0).train()
    tokens, labels = torch.randint(32, (2, 15)), torch.tensor([0, 3])
    dropped = model(tokens, labels, controls=[Control(picture().expand(2, -1, -1, -1), "canny")])
    torch.testing.assert_close(dropped, model.eval()(tokens, model.null_condition(2)))


def test_the_encoder_trains_with_the_rest() -> None:
    model = small(class_dropout_prob=0.0).train()
    control = Control(torch.cat([picture(), picture(seed=1)]), "canny")
    model(torch.randint(32, (2, 15)), torch.tensor([0, 3]), controls=[control]).square().mean().backward()
    silent = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert silent <= {"condition_embeddings", "condition_norm", "adapter.model.pooler.dense"}
