"""Videos: their frames are thinned as pictures, and by methods that look along time."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.projectors import COMPRESSORS, DivPrune, DyCoke, FastV, ImageTokens, ToMe, Uniform, VisionZip, compress

VIDEO = 97
NEW = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [tiny.IMAGE, VIDEO]}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
METHODS = [name for name in COMPRESSORS if not COMPRESSORS[name].trained]


def _prompts(rows):
    inputs = tiny.prompts(rows, [(4, 3), (2, 6)])
    inputs["input_ids"][inputs["input_ids"] == tiny.IMAGE] = VIDEO
    return inputs


def _qwen(grids=((2, 4, 6), (5, 4, 4)), apart=False):
    """Videos of two and five frames; Qwen3-VL has words between frames."""
    inputs = _prompts([[h * w // 4] * t if apart else [t * h * w // 4] for t, h, w in grids])
    return inputs | {
        "pixel_values_videos": tiny.pixels(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4),
        "video_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (inputs["input_ids"] == VIDEO).int() * 2,
    }


def _onevision(frames=5):
    tokens = frames * (tiny.GRID // 2) ** 2 + 1
    pixels = tiny.pixels(2, frames, 3, tiny.SIDE, tiny.SIDE)
    return _prompts([[tokens], [tokens]]) | {"pixel_values_videos": pixels}


INPUTS = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": lambda: _qwen() | {"second_per_grid_ts": [0.5, 0.25]},
    "qwen3_vl": lambda: _qwen(apart=True),
    "llava_onevision": _onevision,
}


@pytest.fixture(scope="module", params=list(INPUTS))
def family(request):
    return request.param, getattr(tiny, request.param)(), INPUTS[request.param]()


def first_row(inputs):
    present = inputs["attention_mask"][0].bool()
    row = {}
    for key, value in inputs.items():
        if key == "pixel_values_videos" and "video_grid_thw" in inputs:
            row[key] = value[: int(inputs["video_grid_thw"][0].prod())]
        elif key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            row[key] = value[:1, present]
        else:
            row[key] = value[:1]
    return row


@torch.no_grad()
def test_all_tokens_give_what_the_plain_model_gives(family):
    _, model, inputs = family
    plain = model.generate(**inputs, **NEW, **LOGITS)
    for compressor in (Uniform(1.0), ToMe(1.0), VisionZip(1.0)):
        with compress(model, compressor):
            got = model.generate(**inputs, **NEW, **LOGITS)
        assert torch.equal(got.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(plain.logits), atol=1e-5, rtol=1e-5)


def test_the_docs_say_which_videos_which_methods_thin():
    text = (Path(__file__).parents[2] / "docs/projectors.md").read_text(encoding="utf-8")
    said = set(re.findall("`([^`]+)`", text[text.index("- **Videos.**") : text.index("Other families refuse")]))
    assert said == {*INPUTS, *(name for name in METHODS if COMPRESSORS[name].temporal), "keep"}


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_every_method_thins_videos(family, method):
    """Fewer tokens, and a row with another gives what it gives alone."""
    _, model, inputs = family
    with compress(model, COMPRESSORS[method]()) as compression:
        batch = model.generate(**inputs, **NEW, **LOGITS)
        report = compression.last
        alone = model.generate(**first_row(inputs), **NEW, **LOGITS)
    assert sum(report.before) == int((inputs["input_ids"] == VIDEO).sum())
    assert sum(report.after) == sum(report.visual)
    assert method == "correlation" or sum(report.after) < sum(report.before)
    if method != "random":
        new = torch.stack(batch.logits)[:, 0]
        torch.testing.assert_close(new, torch.stack(alone.logits)[:, 0], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_a_second_question_about_a_video(family):
    _, model, inputs = family
    with compress(model, DivPrune(0.4)):
        cache = DynamicCache()
        sequences = model.generate(**inputs, **NEW, cache=cache)
        ids = torch.cat([sequences, torch.tensor([[11, 12], [13, 14]])], 1)
        mask = torch.ones_like(ids)
        mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
        turn = inputs | {"input_ids": ids, "attention_mask": mask}
        if "mm_token_type_ids" in inputs:
            turn["mm_token_type_ids"] = (ids == VIDEO).int() * 2
        fresh = model.generate(**turn, **NEW)
        words = {name: value for name, value in turn.items() if name in ("input_ids", "attention_mask")}
        assert torch.equal(model.generate(**words, **NEW, cache=cache), fresh)


SECONDS = {
    "long": [4.0, 8.0],
    "short": [0.1, 0.1],
}  # of a grid: past the frames' sides, so that time counts most, or not


@pytest.mark.parametrize("span", list(SECONDS))
@torch.no_grad()
def test_positions_behind_a_video_are_those_of_the_plain_model(span):
    """In the first turn, with its cache in a second one, and from a fresh start, whatever the video's length says.

    transformers counts on behind a prompt from the largest position of any axis, and within one from the frames' sides:
    its later turns with a cache are not those of a fresh start where a video is long, and neither are these.
    """
    model, inputs = tiny.qwen2_5_vl(), _qwen(((8, 4, 4), (6, 4, 4))) | {"second_per_grid_ts": SECONDS[span]}
    found = {}
    for keep in (None, 1.0, 0.4):
        with nullcontext() if keep is None else compress(model, Uniform(keep)) as compression:
            cache = DynamicCache()
            sequences = model.generate(**inputs, **NEW, cache=cache)
            behind = model.model.rope_deltas[:, 0] + inputs["attention_mask"].sum(1)
            if keep == 0.4:
                assert sum(compression.last.after) < sum(compression.last.before)
                behind = model.model.rope_deltas[:, 0] + torch.tensor([row[0] for row in compression.last.lengths])
                assert torch.equal(found[None][0], behind)
                continue
            ids = torch.cat([sequences, torch.tensor([[11, 12], [13, 14]])], 1)
            mask = torch.ones_like(ids)
            mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
            words = {"input_ids": ids, "attention_mask": mask}
            turn = model.generate(**words, **NEW, **LOGITS, cache=cache)
            types = {"mm_token_type_ids": (ids == VIDEO).int() * 2}
            fresh = model.generate(**(inputs | words | types), **NEW, **LOGITS)
            found[keep] = (behind, torch.stack(turn.logits), torch.stack(fresh.logits))
    for plain, mine in zip(found[None], found[1.0], strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compressor", [Uniform(2), FastV(2)], ids=lambda c: c.name)
def test_what_is_refused(compressor):
    model, pictures = tiny.qwen2_vl(), tiny.qwen2_vl_inputs()
    with compress(model, compressor), pytest.raises(VistokError, match="turns of their own"):
        model.generate(**(pictures | _qwen()), max_new_tokens=1)


def test_dycoke_compares_frames_in_fours():
    """Beside the definition, frame by frame: 2 with 1, 4 with 3, then 3 with 1; the next four anew."""
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(1, 12, 8, generator=generator) for _ in range(7)]
    valid = torch.ones(1, 12, dtype=torch.bool)
    images = [ImageTokens(f, (3, 4), torch.nn.Identity(), 5, valid) for f in frames]
    got = [kept.index.tolist() for (kept,) in DyCoke(3).select_frames(images)]
    for i, beside in enumerate([None, 0, 0, 2, None, 4, 4]):
        likeness = [0.0] * 12 if beside is None else torch.cosine_similarity(frames[i][0], frames[beside][0]).tolist()
        expected = sorted(range(12), key=likeness.__getitem__)[: 12 if beside is None else 3]
        assert got[i] == sorted(expected)


def test_dycoke_has_nothing_to_say_about_a_picture():
    with compress(tiny.llava(), DyCoke(0.3)) as compression, pytest.raises(VistokError, match="picture"):
        compression.model.generate(**tiny.llava_inputs(), max_new_tokens=1)


def test_families_whose_videos_are_not_described():
    inputs = _qwen()
    inputs["input_ids"][inputs["input_ids"] == VIDEO] = tiny.IMAGE
    with compress(tiny.glm4v(), Uniform(2)) as compression, pytest.raises(VistokError, match=r"glm4v .* frames"):
        compression.model.generate(**inputs, max_new_tokens=1)
