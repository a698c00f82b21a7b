"""A conversation goes on with the cache of its first turn, whatever was dropped from it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.projectors import DivPrune, FastV, ToMe, Uniform, VisionZip, compress

NEW = {"max_new_tokens": 4, "do_sample": False}
FAMILIES = ["llava", "llava_next", "internvl", "qwen2_vl"]
BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return getattr(tiny, request.param)(), getattr(tiny, f"{request.param}_inputs")


def grown(inputs, sequences, words):
    """The inputs of the next turn: what was said so far, and more words for each row."""
    ids = torch.cat([sequences, torch.tensor(words)], 1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    more = {"input_ids": ids, "attention_mask": mask}
    if "mm_token_type_ids" in inputs:
        more["mm_token_type_ids"] = (ids == tiny.IMAGE).int()
    return more


def pictures_of(inputs):
    return {name: value for name, value in inputs.items() if name not in BY_TOKEN}


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("compressor", [DivPrune(0.3), ToMe(0.5)], ids=lambda c: c.name)
def test_the_second_turn_is_that_of_a_fresh_start(family, compressor, positions):
    """With the whole conversation, with its pictures again, or with what is new alone; in batches with padding."""
    model, make = family
    inputs = make()
    with compress(model, compressor, positions) as compression:
        first = model.generate(**inputs, **NEW, past_key_values=DynamicCache(), return_dict_in_generate=True)
        cache = given_cache(first)
        turn = grown(inputs, first.sequences, [[11, 12, 13], [14, 15, 16]])
        length = turn["input_ids"].shape[1]
        fresh = model.generate(**turn, **pictures_of(inputs), **NEW, return_dict_in_generate=True, output_logits=True)
        assert compression.last.before
        for again in ({}, pictures_of(inputs)):
            cached = model.generate(
                **turn,
                **again,
                **NEW,
                past_key_values=copy.deepcopy(cache),
                return_dict_in_generate=True,
                output_logits=True,
            )
            assert torch.equal(cached.sequences, fresh.sequences)
            torch.testing.assert_close(torch.stack(cached.logits), torch.stack(fresh.logits), atol=5e-5, rtol=1e-4)
            assert compression.last.before == []
        new = {name: value[:, -4:] for name, value in turn.items()} | {"attention_mask": turn["attention_mask"]}
        cached = model.generate(**new, **NEW, past_key_values=copy.deepcopy(cache))
        assert torch.equal(cached[:, 4:], fresh.sequences[:, length:])


def test_the_third_turn_follows_the_second(family):
    model, make = family
    inputs = make()
    with compress(model, Uniform(0.3)):
        cache, sequences = DynamicCache(), model.generate(**inputs, **NEW)
        first = model.generate(**inputs, **NEW, past_key_values=cache)
        assert torch.equal(first, sequences)
        for _ in range(2):
            turn = grown(inputs, sequences, [[21], [22]])
            cached = model.generate(**turn, **NEW, past_key_values=cache)
            fresh = model.generate(**turn, **pictures_of(inputs), **NEW)
            assert torch.equal(cached, fresh)
            sequences = cached


@pytest.mark.parametrize("every", [True, False])
def test_new_pictures_in_a_later_turn(family, every):
    """Given with those of earlier turns, or alone."""
    model, make = family
    inputs, later = make(), make(**({"seed": 5} if "seed" in make.__code__.co_varnames else {}))
    if "image_sizes" in inputs:  # crops are padded to the most views of a call, which the two turns share
        assert inputs["pixel_values"].shape == later["pixel_values"].shape
    with compress(model, DivPrune(0.3)) as compression:
        cache = DynamicCache()
        sequences = model.generate(**inputs, **NEW, past_key_values=cache)
        turn = grown(inputs, torch.cat([sequences, later["input_ids"]], 1), [[31, 32], [33, 34]])
        start = sequences.shape[1]
        turn["attention_mask"][:, start : start + later["input_ids"].shape[1]] = later["attention_mask"]
        order = _by_row(inputs, later)
        both = {}
        for name in pictures_of(inputs):
            parts = [(inputs, later)[which][name][rows] for which, rows in order[name]]
            both[name] = torch.cat(parts)
        fresh = model.generate(**turn, **both, **NEW)
        after = compression.last.after
        more = both if every else pictures_of(later)
        cached = model.generate(**turn, **more, **NEW, past_key_values=cache)
        assert torch.equal(cached, fresh)
        assert len(compression.last.after) < len(after)


def _by_row(inputs, later):
    """Slices of each picture input of a call with both turns: row after row, the first turn's pictures first."""
    slices = {}
    for name, value in pictures_of(inputs).items():
        if name == "pixel_values" and "image_grid_thw" in inputs:
            ends = inputs["image_grid_thw"].prod(1).cumsum(0).tolist()
        elif len(value) == 3:  # one picture in the first row, two in the second
            ends = [1, 3]
        else:
            ends = [1, 2]
        rows = [slice(0, ends[0]), slice(ends[0], ends[1])]
        slices[name] = [(which, row) for row in rows for which in (0, 1)]
    return slices


def test_fastv_goes_on_from_what_it_kept(family):
    model, make = family
    inputs = make()
    with compress(model, FastV(5)):
        cache = DynamicCache()
        sequences = model.generate(**inputs, **NEW, past_key_values=cache)
        turn = grown(inputs, sequences, [[11, 12], [13, 14]])
        new = {name: value[:, -3:] for name, value in turn.items()} | {"attention_mask": turn["attention_mask"]}
        alone = model.generate(**new, **NEW, past_key_values=copy.deepcopy(cache))
        for again in ({}, pictures_of(inputs)):
            cached = model.generate(**turn, **again, **NEW, past_key_values=copy.deepcopy(cache))
            assert torch.equal(cached[:, turn["input_ids"].shape[1] :], alone[:, 3:])


@pytest.mark.parametrize("compressor", [VisionZip(8), Uniform(0.3)], ids=lambda c: c.name)
def test_a_loop_of_forwards_with_the_mask_of_either_length(compressor):
    model, inputs = tiny.llava(), tiny.llava_inputs()
    with torch.no_grad(), compress(model, compressor):
        expected = model.generate(**inputs, **NEW)[:, inputs["input_ids"].shape[1] :]
        for kind in ("whole", "short", "none"):
            out = model(**inputs, past_key_values=DynamicCache(), use_cache=True)
            cache, tokens = given_cache(out), []
            for step in range(4):
                tokens.append(out.logits[:, -1].argmax(-1))
                if step == 3:
                    break
                mask = None
                if kind != "none":
                    width = inputs["input_ids"].shape[1] + step if kind == "whole" else cache.get_seq_length()
                    past = torch.ones(2, width, dtype=torch.int64)
                    if kind == "whole":
                        past[:, : inputs["input_ids"].shape[1]] = inputs["attention_mask"]
                    mask = torch.cat([past, torch.ones(2, 1, dtype=torch.int64)], 1)
                out = model(input_ids=tokens[-1][:, None], attention_mask=mask, past_key_values=cache)
            assert torch.equal(torch.stack(tokens, 1), expected), kind


def test_what_cannot_go_on_is_told():
    model, inputs = tiny.llava(), tiny.llava_inputs()
    with compress(model, Uniform(0.3)):
        cache = DynamicCache()
        sequences = model.generate(**inputs, **NEW, past_key_values=cache)
        turn = grown(inputs, sequences, [[11], [12]])
        other = turn | {"input_ids": turn["input_ids"].roll(1, 1)}
        with pytest.raises(VistokError, match="do not begin with the prompts"):
            model.generate(**other, **NEW, past_key_values=cache)
        with pytest.raises(VistokError, match="pass the whole conversation"):
            model.generate(**inputs, **NEW, past_key_values=cache)
        with pytest.raises(VistokError, match="of 2 prompts"):
            model.generate(**{name: value[:1] for name, value in turn.items()}, **NEW, past_key_values=cache)
        more = turn | {"input_ids": torch.cat([turn["input_ids"][:, :-1], torch.full((2, 1), tiny.IMAGE)], 1)}
        with pytest.raises(VistokError, match="placeholders"):
            model.generate(**more, pixel_values=inputs["pixel_values"], **NEW, past_key_values=cache)
        beams = model.generate(**inputs, **NEW, num_beams=2, return_dict_in_generate=True)
        with pytest.raises(VistokError, match="beam"):
            model.generate(**grown(inputs, beams.sequences, [[1], [2]]), **NEW, past_key_values=given_cache(beams))
    with compress(model, FastV(4)):
        cache = DynamicCache()
        sequences = model.generate(**inputs, **NEW, past_key_values=cache)
        turn = grown(inputs, torch.cat([sequences, inputs["input_ids"]], 1), [[11], [12]])
        with pytest.raises(VistokError, match="new pictures"):
            model.generate(**turn, pixel_values=inputs["pixel_values"], **NEW, past_key_values=cache)
