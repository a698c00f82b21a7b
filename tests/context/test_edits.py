"""Edits of cached prompts: exact where they must be, and refused where rotations do not allow them."""

from __future__ import annotations

import pytest
import torch

from tests.context.tiny import ragged, tiny
from vistok import context
from vistok.context import Edit
from vistok.context.rotary import Rotary
from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument, given_cache

KINDS = ["llama", "qwen3", "phi", "glm", "smollm3", "cohere"]
EDITS = {
    "insert": [Edit(5, 5, [7, 8, 9])],
    "delete": [Edit(4, 9)],
    "replace": [Edit(3, 5, [11])],
    "several": [Edit(0, 2, [5]), Edit(6, 6, [7, 8]), Edit(10, 14, [9]), Edit(20, 20, [3, 4, 5, 6])],
    "append": [Edit(30, 30, [3, 4])],
    "cut the end": [Edit(20, 30)],
    "the last token": [Edit(29, 30, [12])],
    "none": [],
}


def text(length: int = 30) -> torch.Tensor:
    return ragged((length,))["input_ids"]


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "smollm3"])  # its one layer would not turn
def test_a_model_of_one_layer_is_as_if_it_read_the_new_text(kind, name):
    """With one layer keys and values know their own token alone, so the paper's approximation is exact."""
    model, ids = tiny(kind, layers=1), text()
    with context.apply(model, context.Full()):
        cache = given_cache(model(input_ids=ids))
        edited = context.edit(model, ids, cache, EDITS[name])
        new = edited.ids
        out = model.generate(**edited.arguments(model), max_new_tokens=5, do_sample=False)
    assert torch.equal(out, model.generate(input_ids=new, max_new_tokens=5, do_sample=False))
    assert torch.equal(out[:, : new.shape[1]], new)
    assert edited.run < edited.whole
    assert edited.cost < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_turn_in_half_precision_as_they_do(kind, dtype):
    model, ids = tiny(kind), text()
    expected, found = Rotary.of(model), Rotary.of(model.to(dtype))
    assert (found.layout, found.turns) == (expected.layout, expected.turns)
    one = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    deep = kind == "smollm3"  # whose one layer would not turn; deep models are exact at the end alone
    model, edits = tiny(kind, layers=5 if deep else 1).to(dtype), [Edit(26, 30 if deep else 28, [3, 4, 5])]
    with context.apply(model, context.Full()):
        edited = context.edit(model, ids, given_cache(model(input_ids=ids)), edits)
        out = model.generate(**edited.arguments(model), **one)
    new = model.generate(input_ids=edited.ids, **one)
    with context.apply(model, context.TokenSelect(512, chunk=8)):
        selected = model.generate(input_ids=edited.ids, **one)
    for each in (out, selected):
        torch.testing.assert_close(each.logits[0].float(), new.logits[0].float(), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [context.Full, lambda: context.TidalDecode(999, 1)])
def test_an_edit_at_the_end_is_exact_in_deep_models(kind, policy):
    model, ids = tiny(kind), text()
    with context.apply(model, policy()):
        cache = given_cache(model(input_ids=ids))
        edited = context.edit(model, ids, cache, [Edit(26, 28, [3, 4, 5]), Edit(28, 30, [6])])
        out = model.generate(**edited.arguments(model), max_new_tokens=5, do_sample=False)
    assert torch.equal(out, model.generate(input_ids=edited.ids, max_new_tokens=5, do_sample=False))


def test_texts_of_different_lengths_are_edited_each_in_its_way():
    model, inputs = tiny(layers=1), ragged((30, 17, 8))
    each = [[Edit(2, 6)], [Edit(0, 0, [5, 6, 7, 8]), Edit(9, 10, [3])], []]
    with context.apply(model, context.Full()):
        out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, do_sample=False)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1)
        edited = context.edit(model, out.sequences, given_cache(out), each, mask)
        found = model.generate(**edited.arguments(model), max_new_tokens=5, do_sample=False)
    assert edited.mask.sum(1).tolist() == [29, 24, 11]
    again = {"input_ids": edited.ids, "attention_mask": edited.mask}
    assert torch.equal(found, model.generate(**again, max_new_tokens=5, do_sample=False))


def test_a_cache_whose_edit_was_broken_off_is_refused():
    model, ids = tiny(), text()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with context.apply(model, context.Full()):
        context.active(model).rotary  # noqa: B018  a first edit asks for it, before it changes anything
        cache = given_cache(model(input_ids=ids))
        handle = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            context.edit(model, ids, cache, EDITS["insert"])
        handle.remove()
        with pytest.raises(VistokError, match="broken off half-way"):
            context.edit(model, ids, cache, EDITS["insert"])
        with pytest.raises(VistokError, match="broken off half-way"):
            model(input_ids=ids[:, :1], **{cache_argument(model): cache})
        context.edit(model, ids, given_cache(model(input_ids=ids)), EDITS["insert"])


@torch.no_grad()
def test_an_edit_in_front_of_deep_layers_stays_near_a_new_reading():
    model, ids = tiny(), text(60)
    with context.apply(model, context.Full()):
        cache = given_cache(model(input_ids=ids))
        edited = context.edit(model, ids, cache, [Edit(8, 8, [5, 6])])
        arguments = edited.arguments(model) | {"input_ids": edited.ids[:, -1:]}
        near = model(**arguments).logits[0, -1].log_softmax(-1)
    anew = model(input_ids=edited.ids).logits[0, -1].log_softmax(-1)
    other = model(input_ids=text(62)).logits[0, -1].log_softmax(-1)

    def kl(law: torch.Tensor) -> float:
        return float((anew.exp() * (anew - law)).sum())

    assert kl(near) < 0.5 * kl(other)


def test_rotations_that_change_with_the_length_are_refused_where_they_do():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    model = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    with context.apply(model, context.Full()):
        ids = text(20)
        edited = context.edit(model, ids, given_cache(model(input_ids=ids)), [Edit(19, 20, [5])])
        out = model.generate(**edited.arguments(model), max_new_tokens=3, do_sample=False)
        assert torch.equal(out, model.generate(input_ids=edited.ids, max_new_tokens=3, do_sample=False))
        with pytest.raises(VistokError, match="longrope"):
            context.edit(model, ids, given_cache(model(input_ids=ids)), [Edit(2, 2, range(3, 40))])


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([Edit(5, 9), Edit(7, 8)], "disjoint"),
        ([Edit(5, 99)], "within"),
        ([Edit(0, 30)], "at least one"),
    ],
)
def test_edits_that_cannot_be_are_named(edits, said):
    model, ids = tiny(), text()
    with context.apply(model, context.Full()):
        cache = given_cache(model(input_ids=ids))
        with pytest.raises(VistokError, match=said):
            context.edit(model, ids, cache, edits)
        with pytest.raises(VistokError, match="holds"):
            context.edit(model, ids[:, :20], cache, [])


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ("gpt2", {}, "rotary"),
    ],
)
def test_models_whose_keys_cannot_turn_are_refused_wherever_keys_turn(kind, options, named):
    model, ids = tiny(kind, **options), text()
    with context.apply(model, context.Full()), pytest.raises(VistokError, match=f"{named}.*TidalDecode"):
        context.edit(model, ids, given_cache(model(input_ids=ids)), [Edit(3, 4)])
    with pytest.raises(VistokError, match=f"{named}.*TidalDecode"):
        context.apply(model, context.TokenSelect(8))
    with context.apply(model, context.TidalDecode(8, 1)):  # what the sentence names does work
        model(input_ids=ids)


def test_policies_without_edits_are_refused():
    ids, model = text(), tiny()
    with context.apply(model, context.StreamingLLM(2, 8)), pytest.raises(VistokError, match="streaming"):
        context.edit(model, ids, given_cache(model(input_ids=ids)), [Edit(3, 4)])
    with pytest.raises(VistokError, match="no policy"):
        context.edit(model, ids, None, [])
