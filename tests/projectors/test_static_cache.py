"""A static cache, whose masks transformers makes itself, beside methods that drop tokens inside the language model."""

from __future__ import annotations

import pytest

import vistok
from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.projectors import FastV, PyramidDrop, Uniform

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "internvl", "smolvlm")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [FastV(0.5), PyramidDrop(), Uniform(0.5)], ids=lambda method: method.name)
def test_a_static_cache_runs_or_is_named(family, method):
    model = getattr(tiny, family)()
    inputs = getattr(tiny, {"smolvlm": "idefics3"}.get(family, family).replace("2_5", "2") + "_inputs")()
    asked = {"max_new_tokens": 2, "do_sample": False, "cache_implementation": "static"}
    try:
        with vistok.compress(model, method):
            assert model.generate(**inputs, **asked).shape[1] == inputs["input_ids"].shape[1] + 2
    except VistokError as error:
        assert "cache" in str(error)
