"""Every method on every family, on tiny random models of the real classes."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.projectors import COMPRESSORS, DivPrune, FastV, PyramidDrop, SparseVLM, ToMe, Uniform, VisionZip, compress
from vistok.projectors.families import FAMILIES

NEW = {"max_new_tokens": 4, "do_sample": False}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
METHODS = [name for name in COMPRESSORS if not (COMPRESSORS[name].trained or COMPRESSORS[name].temporal)]
READERS = [name for name in METHODS if hasattr(COMPRESSORS[name], "needs") and COMPRESSORS[name]().needs(5).attention]
# Sliding layers forget what lies behind their window, layers of convolution have no queries.
HOLES = {
    (method, family): "full attention"
    for method in ("fastv", "sparsevlm", "pyramiddrop", "dart", "pmod")
    for family in ("gemma3", "aya_vision", "cohere2_vision", "lfm2_vl")
} | {(method, "fast_vlm"): "none to read" for method in READERS}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return request.param, getattr(tiny, request.param)(), getattr(tiny, f"{request.param}_inputs")


def holes_in_the_docs(name: str) -> set[str]:
    """The methods that the last column of a family's row in docs/projectors.md names."""
    lines = (Path(__file__).parents[2] / "docs/projectors.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    (cells,) = [row for row in rows if len(row) == 4 and f"`{name}`" in row[0]]
    return set(re.findall(r"`([\w-]+)`", cells[-1]))


@torch.no_grad()
def test_every_method(family):
    """Fewer tokens in a padded batch, in one generated token; or a sentence, where the table has a hole."""
    name, model, make = family
    inputs = make()
    assert holes_in_the_docs(name) == {method for method, family in HOLES if family == name}
    for method in METHODS:
        compressor = COMPRESSORS[method]()
        if (method, name) in HOLES:
            with pytest.raises(VistokError, match=HOLES[method, name]), compress(model, compressor):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
            continue
        with compress(model, compressor) as compression:
            tokens = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        report = compression.last
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 1, method
        assert sum(report.before) == int((inputs["input_ids"] == tiny.IMAGE).sum()), method
        assert sum(report.after) == sum(report.visual), method
        assert method == "correlation" or sum(report.after) < sum(report.before), method


@torch.no_grad()
def test_all_tokens_give_what_the_plain_model_gives(family):
    name, model, make = family
    inputs = make()
    plain = model.generate(**inputs, **NEW, **LOGITS)
    for compressor in (Uniform(1.0), ToMe(1.0), VisionZip(1.0)):
        if (compressor.name, name) in HOLES:
            continue
        with compress(model, compressor):
            got = model.generate(**inputs, **NEW, **LOGITS)
        assert torch.equal(got.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(plain.logits), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("compressor", [Uniform(0.5), FastV(0.5)], ids=lambda method: method.name)
def test_a_prompt_in_chunks_is_as_at_once_or_is_refused(family, compressor):
    name, model, make = family
    if (compressor.name, name) in HOLES:
        return
    inputs = make()
    with compress(model, compressor):
        at_once = model.generate(**inputs, **NEW, **LOGITS)
        for size in (1, 5, inputs["input_ids"].shape[1] - 1):  # the last one parts no picture from itself
            if compressor.name == "fastv" or (name in ("gemma3", "paligemma") and size < 9):
                with pytest.raises(VistokError, match="leave prefill_chunk_size out"):
                    model.generate(**inputs, **NEW, prefill_chunk_size=size)
            else:
                found = model.generate(**inputs, **NEW, **LOGITS, prefill_chunk_size=size).logits
                torch.testing.assert_close(torch.stack(found), torch.stack(at_once.logits), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_fewer_tokens_are_some_of_the_models_own(family):
    """What stands at the kept placeholders are the picture's features in order, with the levels that they have."""
    name, model, make = family
    inputs = _first_row(name, make())
    seen = {}
    backbone = FAMILIES[name]().backbone(model)
    hook = backbone.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        model(**inputs)
        full, visual = dict(seen), inputs["input_ids"][0] == tiny.IMAGE
        with compress(model, DivPrune(0.5)) as compression:
            model(**inputs)
    finally:
        hook.remove()
    every, after = full["inputs_embeds"][0][visual], sum(compression.last.after)
    kept = seen["inputs_embeds"][0]
    distance = torch.cdist(kept, every, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance[distance.min(1).values < 1e-5]
    assert len(distance) == after
    places = distance.argmin(1)
    once = (distance < 1e-5).sum(1) == 1  # ends of rows are all alike
    assert bool((places[once].diff() > 0).all())
    levels, short = (call.get("deepstack_visual_embeds") or [] for call in (full, seen))
    assert len(levels) == len(short) == (2 if name == "qwen3_vl" else 0)
    for level, mine in zip(levels, short, strict=True):
        torch.testing.assert_close(mine, level[places])


@pytest.mark.parametrize(
    "compressor", [DivPrune(0.4), ToMe(0.5), FastV(3), PyramidDrop(0.3), SparseVLM(0.3)], ids=lambda c: c.name
)
@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(family, compressor):
    """A row with others gives what it gives alone, whatever its padding."""
    name, model, make = family
    if (compressor.name, name) in HOLES:
        pytest.skip("a hole of the table")
    inputs = make()
    with compress(model, compressor):
        batch = model.generate(**inputs, **NEW, **LOGITS)
        alone = model.generate(**_first_row(name, inputs), **NEW, **LOGITS)
    new = torch.stack(batch.logits)[:, 0]
    torch.testing.assert_close(new, torch.stack(alone.logits)[:, 0], atol=5e-5, rtol=1e-4)


def _first_row(name, inputs):
    present = inputs["attention_mask"][0].bool()
    row = {}
    for key, value in inputs.items():
        if value.shape[:2] == inputs["input_ids"].shape:
            row[key] = value[:1, present]
        elif key == "pixel_values" and "image_grid_thw" in inputs:
            row[key] = value[: int(inputs["image_grid_thw"][0].prod())]
        else:
            row[key] = value[:1]
    return row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family, dtype):
    name, model, make = family
    half = copy.deepcopy(model).to(dtype)
    inputs = make()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    for compressor in (VisionZip(0.5), ToMe(0.5)):
        if (compressor.name, name) in HOLES:
            continue
        with compress(half, compressor):
            assert half.generate(**inputs, **NEW).shape[1] == inputs["input_ids"].shape[1] + 4
