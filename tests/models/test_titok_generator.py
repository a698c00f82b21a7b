"""TiTok's MaskGIT generator: published keys and configuration, its schedule, and the way from a folder to pictures."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import vistok
from tests.cli.test_cli import vistok as command
from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.titok_generator import TiTokGenerator, TiTokGeneratorConfig
from vistok.samplers import Masked, Noise, SamplingParams
from vistok.samplers.masked import MaskPlan
from vistok.samplers.masked.sampler import GuidedMasked, fill
from vistok.tokenizers.titok import TiTok

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def small(length: int = 6, codes: int = 11, classes: int = 5) -> TiTokGenerator:
    torch.manual_seed(0)
    model = TiTokGenerator(TiTokGeneratorConfig(length, codes, classes, **SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def published(folder, model: TiTokGenerator, **generator) -> None:
    """Writes a model as the published repositories hold it."""
    config = model.config
    entries = {"image_seq_len": config.image_seq_len, "condition_num_classes": config.condition_num_classes, **SHAPE}
    tree = {"model": {"vq_model": {"codebook_size": config.codebook_size}, "generator": entries | generator}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tree))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def test_keys_are_those_of_the_published_files() -> None:
    with torch.device("meta"):
        state = TiTokGenerator.from_preset("MaskGIT-TiTok-L-32").state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["model.lm_head.weight"] == (4096, 768)
    assert shapes["model.embeddings.word_embeddings.weight"] == (4096 + 1000 + 2, 768)
    assert shapes["model.embeddings.position_embeddings.weight"] == (33, 768)
    assert shapes["model.encoder.layer.23.intermediate.dense.weight"] == (3072, 768)
    assert not any("pooler" in key for key in state) and len(state) == 24 * 16 + 7


def test_a_published_folder_loads_strictly(tmp_path) -> None:
    model = small()
    published(tmp_path / "whole", model)
    loaded = TiTokGenerator.from_pretrained(tmp_path / "whole")
    codes, labels = torch.randint(12, (2, 6)), torch.tensor([0, 5])
    assert torch.equal(loaded(codes, labels), model(codes, labels))
    state = {key: value for key, value in model.state_dict().items() if key != "model.lm_head.bias"}
    save_file(state, tmp_path / "whole" / "model.safetensors")
    with pytest.raises(VistokError, match=r"lm_head\.bias"):
        TiTokGenerator.from_pretrained(tmp_path / "whole")
    published(tmp_path / "uvit", model, model_type="UViT")
    with pytest.raises(VistokError, match=r"UViT.*S-128"):
        TiTokGenerator.from_pretrained(tmp_path / "uvit")


@torch.no_grad()
def test_the_class_token_stands_before_the_codes_and_null_is_the_last_id() -> None:
    model = small()
    codes = torch.randint(12, (1, 6))
    for label, number in ((2, 11 + 1 + 2), (int(model.null_condition(1)), 11 + 1 + 5)):
        ids = torch.cat([torch.tensor([[number]]), codes], 1)
        hidden = model.model(input_ids=ids).last_hidden_state[:, 1:]
        torch.testing.assert_close(model(codes, torch.tensor([label])), model.model.lm_head(hidden))


def plain_counts(length: int, steps: int) -> list[int]:
    """The published rule, spelt out."""
    hidden, counts = length, []
    for step in range(steps):
        ratio = (step + 1) / steps
        left = math.floor(length * math.acos(ratio) / (math.pi * 0.5))
        hidden = 0 if step + 1 == steps else max(1, min(hidden - 1, left))
        counts.append(hidden)
    return counts


@pytest.mark.parametrize(("length", "steps"), [(32, 8), (64, 8), (256, 16), (8, 8), (5, 1)])
def test_the_published_schedule_of_masks(length, steps) -> None:
    found = [step.hidden for step in MaskPlan(length, steps, "arccos")]
    assert found == plain_counts(length, steps) and all(a > b for a, b in zip([length, *found], found, strict=False))


def test_the_published_ramps_of_guidance() -> None:
    def scales(schedule: str, guidance: float) -> list[float]:
        return [step.guidance for step in MaskPlan(32, 8, "arccos", guidance, guidance_schedule=schedule)]

    assert scales("constant", 3.0) == [3.0] * 8
    assert scales("linear", 5.5) == pytest.approx([1 + 4.5 * s / 8 for s in range(8)])
    power = [1 + 7.5 * (1 - math.cos(math.pi * (s / 8) ** 3)) / 2 for s in range(8)]
    assert scales("power-cosine", 8.5) == pytest.approx(power)
    with pytest.raises(VistokError, match="power-cosine"):
        MaskPlan(32, 8, guidance_schedule="power_cosine")


@torch.no_grad()
def test_sampling_is_the_published_loop() -> None:
    model, steps, temperature, scale = small(), 4, 2.5, 3.0
    labels, generator = torch.tensor([1, 4]), torch.Generator().manual_seed(3)
    gumbel = -(-torch.rand(2, steps, 2, 6, 11, generator=generator).log()).log()
    ids, decided = torch.full((2, 6), model.mask_id), torch.zeros(2, 6, dtype=torch.bool)
    null = model.null_condition(2)
    for step in range(steps):  # as the specification spells it
        heat = temperature * (1 - (step + 1) / steps)
        logits = model(ids, labels)
        if step:
            logits = logits + (scale - 1) * step / steps * (logits - model(ids, null))
        drawn = (logits + max(heat, 1e-3) * gumbel[0, step]).argmax(-1)
        drawn = torch.where(decided, ids, drawn)
        confidence = logits.gather(-1, drawn[..., None].clamp(max=10))[..., 0] + heat * gumbel[1, step, ..., 0]
        confidence = confidence.masked_fill(decided, torch.inf)
        hide = plain_counts(6, steps)[step]
        ids, decided = drawn, torch.ones_like(decided)
        if step + 1 < steps:
            again = confidence.argsort(1)[:, :hide]
            ids, decided = drawn.scatter(1, again, model.mask_id), decided.scatter(1, again, False)
    plan = MaskPlan(6, steps, "arccos", scale, annealed=temperature, choice=temperature)
    found, _ = fill(
        GuidedMasked(model, Condition(labels), True),
        plan,
        torch.full((2, 6), model.mask_id),
        lambda step, logp, heat: (logp / heat + gumbel[0, step]).argmax(-1),
        lambda step: gumbel[1, step, ..., 0],
        "logit",
    )
    assert torch.equal(found, ids)


def test_a_picture_follows_from_its_seed_whatever_its_batch() -> None:
    model, sampler = small(), Masked(3, 2.5, 2.5, "arccos", "logit", "power-cosine")

    def draw(samples):
        condition, noise = Condition(torch.tensor(samples)), Noise(0, torch.tensor(samples))
        return sampler.sample(model, condition, SamplingParams(2.0), noise)[0]

    assert torch.equal(draw([2])[0], draw([0, 1, 2])[2])


def test_from_a_folder_to_pictures(tmp_path) -> None:
    can = TiTok.from_pretrained("one-d-piece-mini").capabilities
    published(tmp_path / "model", small(can.lengths[-1], can.codebook_size))
    call = ("sample", "--model", "titok-maskgit", "--checkpoint", str(tmp_path / "model"), "--class", "2")
    draw = (*call, "--tokenizer", "one-d-piece-mini", "--sampler", "masked:steps=2:schedule=arccos:order=logit")
    done = command(*draw, "--out", str(tmp_path / "x.png"))
    assert done.returncode == 0 and (tmp_path / "x.png").exists(), done.stderr
    for more, said in (("vq-mini", "--tokenizer"), ("flextok-mini", "--tokenizer")):
        wrong = command(*call, "--tokenizer", more, "--out", str(tmp_path / "y.png"))
        assert wrong.returncode == 2 and said in wrong.stderr and "Traceback" not in wrong.stderr
    pipe = vistok.pipeline("titok-maskgit", checkpoint=tmp_path / "model", tokenizer="one-d-piece-mini")
    with pytest.raises(VistokError, match="one order"):
        pipe.with_image(tmp_path / "x.png", tmp_path / "x.png")
