"""A policy on a decoder of transformers: exact where nothing is dropped, undone without a trace, batches, errors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.context.tiny import ragged, tiny
from tests.generate_options import NAMES, agrees, becomes
from vistok import context
from vistok.context.cache import ContextCache
from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument, given_cache

LARGE = 999
WHOLE = {
    "full": lambda: context.Full(),
    "tidal": lambda: context.TidalDecode(LARGE, 1),
    "tidal-query": lambda: context.TidalDecode(LARGE, 1, heads="query", pool="vote"),
    "tokenselect": lambda: context.TokenSelect(LARGE, chunk=8),
    "core": lambda: context.CoreContext(4, LARGE),
    "streaming": lambda: context.StreamingLLM(4, LARGE, chunk=8),
    "snapkv": lambda: context.SnapKV(LARGE),
    "heavy-hitters": lambda: context.HeavyHitters(LARGE, chunk=8),
    "lococo": lambda: context.LoCoCo(mixing=context.Mixing(LARGE), chunk=8),
}
SMALL = {
    "tidal": lambda: context.TidalDecode(8, 1),
    "tidal-query": lambda: context.TidalDecode(8, 1, heads="query"),
    "tidal-vote": lambda: context.TidalDecode(8, 1, pool="vote"),
    "tokenselect": lambda: context.TokenSelect(4, 2, 10, chunk=8),
    "tokenselect-pool": lambda: context.TokenSelect(4, 2, 10, chunk=8, pool=3, threshold=None),
    "core": lambda: context.CoreContext(4, 8),
    "core-query": lambda: context.CoreContext(4, 10, heads="query"),
    "core-mean": lambda: context.CoreContext(4, 6, pool="mean"),
    "core-max": lambda: context.CoreContext(4, 6, pool="max"),
    "streaming": lambda: context.StreamingLLM(2, 8, chunk=8),
    "snapkv": lambda: context.SnapKV(12, 4, 3),
    "heavy-hitters": lambda: context.HeavyHitters(8, 2, chunk=8),
    "lococo": lambda: context.LoCoCo(mixing=context.Mixing(8), chunk=16),
}


@pytest.fixture(scope="module")
def model():
    return tiny()


def run(model: Any, inputs: dict[str, Any], new: int = 10, **options: Any) -> Any:
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True} | options
    return model.generate(**inputs, max_new_tokens=new, **options)


def apart(a: Any, b: Any) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a.logits, b.logits, strict=True))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi", "glm", "smollm3", "jetmoe"])
def test_a_budget_above_the_length_gives_plain_logits_of_ragged_batches(name, kind):
    model, inputs = tiny(kind), ragged()
    plain = run(model, inputs)
    with context.apply(model, WHOLE[name]()):
        assert apart(run(model, inputs), plain) < 1e-4
        logits = model(**inputs, use_cache=False).logits
    real = inputs["attention_mask"].bool()
    assert torch.allclose(logits[real], model(**inputs).logits[real], atol=1e-4)


# The second lengths leave core tokens and raw ones of two texts that are as many rows together, after some steps.
@pytest.mark.parametrize("lengths", [(50, 23, 60), (21, 14), (21, 8)])
@pytest.mark.parametrize("name", SMALL)
def test_a_sequence_in_a_batch_is_decoded_as_alone(name, lengths, model):
    inputs = ragged(lengths)
    with context.apply(model, SMALL[name]()) as at_work:
        together = run(model, inputs)
        for b, row in enumerate(inputs["attention_mask"].bool()):
            alone = run(model, {"input_ids": inputs["input_ids"][b, row][None]})
            for both, one in zip(together.logits, alone.logits, strict=True):
                assert torch.allclose(both[b], one[0], atol=1e-4)
        assert at_work.last.steps == 9
        if min(lengths) > 20:  # than which all budgets are smaller
            assert at_work.last.share < 1


@pytest.mark.parametrize("name", SMALL)
def test_the_model_is_given_back_without_a_trace(name, model, tmp_path):
    inputs = ragged()
    model.save_pretrained(tmp_path)  # which completes the config
    plain, state, settings = run(model, inputs), dict(vars(model)), model.config.to_dict()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    keys = [set(vars(m)) for m in model.modules()]
    with context.apply(model, SMALL[name]()):
        run(model, inputs)
        model.save_pretrained(tmp_path)
    assert vars(model).keys() == state.keys()
    assert model.config.to_dict() == settings
    assert model.config._attn_implementation == "sdpa"
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert keys == [set(vars(m)) for m in model.modules()]
    assert torch.equal(run(model, inputs).sequences, plain.sequences)
    assert "vistok" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", SMALL)
def test_a_copy_takes_its_policy_along(name, model):
    inputs = ragged()
    with context.apply(model, SMALL[name]()) as at_work:
        wanted = run(model, inputs)
        twin = copy.deepcopy(model)
    assert torch.equal(run(twin, inputs).sequences, wanted.sequences)
    assert context.active(twin) is not at_work
    context.active(twin).remove()
    assert torch.equal(run(twin, inputs).sequences, run(model, inputs).sequences)


@pytest.mark.parametrize("name", ["full", "tidal", "tokenselect", "core", "streaming"])
def test_a_forward_reads_padding_on_either_side(name, model):
    left = ragged()
    counts = left["attention_mask"].sum(1)
    order = (~left["attention_mask"].bool()).to(torch.int8).sort(dim=1, stable=True).indices
    right = {key: value.gather(1, order) for key, value in left.items()}
    wanted = model(**right).logits
    with context.apply(model, WHOLE[name]()):
        found = model(**right).logits
    for b, count in enumerate(counts.tolist()):
        assert torch.allclose(found[b, :count], wanted[b, :count], atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_later_turns_continue_the_cache(name, model):
    inputs = ragged((30, 18))
    with context.apply(model, SMALL[name]()):
        whole = run(model, inputs, 12)
        half = run(model, inputs, 6)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], 1)
        cache = getattr(half, "cache", None) or half.past_key_values
        again = {"input_ids": half.sequences, "attention_mask": mask}
        argument = "cache" if hasattr(half, "cache") else "past_key_values"
        rest = run(model, again, 6, **{argument: cache})
    assert torch.equal(rest.sequences, whole.sequences)


@contextmanager
def broken_off(module: nn.Module, error: type[BaseException]) -> Iterator[None]:
    """Lets a module of the model raise in its forward, and expects to see it."""

    def stop(*_: object) -> None:
        raise error("stop")

    handle = module.register_forward_hook(stop)
    try:
        with pytest.raises(error, match="stop"):
            yield
    finally:
        handle.remove()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["full", *SMALL])
@torch.no_grad()
def test_a_forward_that_is_broken_off_is_undone(name, error, model):
    inputs = ragged((30, 18))
    argument = cache_argument(model)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], 1)
    later = {"input_ids": ragged((4, 4), seed=1)["input_ids"], "attention_mask": mask}
    stops = model.model.layers[2].mlp
    with context.apply(model, ({"full": context.Full} | SMALL)[name]()) as at_work:
        first = model(**inputs)
        wanted = model(**later, **{argument: given_cache(first)}).logits
        report = at_work.last
        with broken_off(stops, error):
            model(**inputs)
        cache = given_cache(model(**inputs))
        with broken_off(stops, error):
            model(**later, **{argument: cache})
        if cache.policy.keeps_all:
            assert torch.allclose(model(**later, **{argument: cache}).logits, wanted, atol=1e-5)
            assert at_work.last == report
        else:
            with pytest.raises(VistokError, match="broken off half-way"):
                model(**later, **{argument: cache})
        anew = ContextCache(5, at_work.policy)
        with broken_off(stops, error):
            model(**inputs, **{argument: anew})
        assert torch.allclose(model(**inputs, **{argument: anew}).logits, first.logits, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_of_a_broken_forward_is_left_to_later_ones(error, model):
    inputs, whole = ragged(), tiny()
    with context.apply(whole, context.Full()) as at_work:
        plain = run(whole, inputs)
        for call in (whole, partial(whole.generate, max_new_tokens=3)):
            with broken_off(whole.model.layers[2], error):
                call(**inputs)
            if error is RuntimeError or call is not whole:
                with pytest.raises(VistokError, match="called alone"):
                    whole.model.layers[0].self_attn(torch.zeros(1, 2, 64), [torch.zeros(1, 2, 16)] * 2)
            with at_work.paused():
                whole(**inputs)
            assert torch.equal(run(whole, inputs).sequences, plain.sequences)


@pytest.mark.parametrize("name", ["tidal", "tokenselect", "core", "heavy-hitters", "streaming", "snapkv"])
def test_beams_follow_their_sequences(name, model):
    inputs = ragged((30, 18))
    plain = model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False)
    with context.apply(model, WHOLE[name]()):
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False), plain)
    with context.apply(model, SMALL[name]()):
        out = model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False)
    assert out.shape == plain.shape


@pytest.mark.parametrize("name", ["tidal", "tokenselect"])
def test_assisted_decoding_takes_rejected_tokens_back(name, model):
    inputs = {"input_ids": ragged((24,))["input_ids"].repeat(1, 2)}
    with context.apply(model, WHOLE[name]()):
        drafted = model.generate(**inputs, max_new_tokens=12, prompt_lookup_num_tokens=4, do_sample=False)
    assert torch.equal(drafted, model.generate(**inputs, max_new_tokens=12, do_sample=False))


@pytest.mark.parametrize("name", WHOLE)
def test_prefill_in_chunks_equals_prefill_at_once(name, model):
    inputs = ragged()
    with context.apply(model, WHOLE[name]()):
        chunks = run(model, inputs, prefill_chunk_size=7)
    assert torch.equal(chunks.sequences, run(model, inputs).sequences)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_generate_is_heeded_or_refused(name, model):
    inputs = {"bos_token_id": {}, "forced_bos_token_id": {"input_ids": torch.tensor([[7]])}}.get(name, ragged())
    plain = becomes(lambda **options: model.generate(**inputs, **options), name)
    with context.apply(model, context.Full()):
        found = becomes(lambda **options: model.generate(**inputs, **options), name)
    assert isinstance(found, VistokError) == (name in ("use_cache", "cache_implementation", "output_attentions"))
    assert agrees(found, plain), (found, plain)


def test_a_peft_model_is_seen_through(model):
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))
    inputs = ragged()
    with context.apply(lora, context.TidalDecode(8, 1)) as at_work:
        run(lora, inputs)
        assert at_work.last.share < 1
    assert context.active(lora.get_base_model()) is None


def test_core_context_trains_and_others_say_so(model):
    model, inputs = copy.deepcopy(model).train(), ragged((20, 12))
    with context.apply(model, context.CoreContext(4, 6)):
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert float(model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum()) > 0
    with context.apply(model, context.TidalDecode(8, 1)), pytest.raises(VistokError, match="use_cache=False"):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()


def seq2seq() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_ff=32, num_layers=1, num_heads=2))


REFUSED = {
    "windows": (lambda: tiny("mistral", sliding_window=16, use_sliding_window=True), "sliding windows"),
    "state": (lambda: tiny("mamba"), "linear attention"),
    "softcap": (lambda: tiny("gemma2"), "sliding|softcap"),
    "own attention": (lambda: tiny("diffllama"), "of its own"),
    "attention of no registry": (lambda: tiny("doge"), "computes its attention itself"),
    "no text model": (lambda: tiny("modernbert-decoder", layer_types=["full_attention"] * 5), "no text model"),
    "encoder": (lambda: seq2seq(), "encoder-decoder"),
    "no model": (lambda: torch.nn.Linear(2, 2), "transformers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_without_full_attention_are_refused_and_left_alone(what):
    build, said = REFUSED[what]
    model = build()
    with pytest.raises(VistokError, match=said):
        context.apply(model, context.Full())
    assert context.active(model) is None
    assert "generate" not in vars(model)


CALLS = {
    "static cache": ({"cache_implementation": "static"}, "static"),
    "no cache": ({"use_cache": False}, "use_cache"),
    "attentions": ({"output_attentions": True}, "output_attentions"),
}


@pytest.mark.parametrize("what", CALLS)
def test_calls_that_no_policy_serves_are_named(what, model):
    options, said = CALLS[what]
    model.config._attn_implementation = "eager" if what == "attentions" else "sdpa"
    try:
        with context.apply(model, context.TidalDecode(8, 1)), pytest.raises(VistokError, match=said):
            model.generate(**ragged(), max_new_tokens=2, **options)
    finally:
        model.config._attn_implementation = "sdpa"


def test_padding_on_the_right_is_refused_by_generate(model):
    inputs = ragged()
    inputs = {name: value.flip(1) for name, value in inputs.items()}
    with context.apply(model, context.TidalDecode(8, 1)), pytest.raises(VistokError, match="left"):
        model.generate(**inputs, max_new_tokens=2)


def test_a_foreign_cache_and_a_changed_mask_are_refused(model):
    from transformers import DynamicCache

    inputs = ragged()
    with context.apply(model, context.TidalDecode(8, 1)):
        argument = cache_argument(model)
        with pytest.raises(VistokError, match="DynamicCache"):
            model(**inputs, **{argument: DynamicCache()})
        cache = given_cache(model(**inputs))
        later = {"input_ids": inputs["input_ids"][:, :1], argument: cache}
        with pytest.raises(VistokError, match="attention mask"):
            model(**later, attention_mask=torch.ones(3, 2))
        with pytest.raises(VistokError, match="hides cached tokens"):
            model(**later, attention_mask=torch.ones(3, 41))
    with context.apply(model, context.StreamingLLM(2, 8)), pytest.raises(VistokError, match=r"tidal.*streaming"):
        model(**later)


def test_a_policy_is_put_on_once(model):
    with context.apply(model, context.TidalDecode(8, 1)) as at_work:
        with pytest.raises(VistokError, match="remove"):
            context.apply(model, context.StreamingLLM())
        assert context.active(model) is at_work
    with pytest.raises(VistokError, match="no policy"):
        context.apply(model, "tidal")


WRONG = {
    "tidal": [
        {"top_k": 0},
        {"start": -1},
        {"correction": 1, "start": 2},
        {"heads": "all"},
        {"pool": "mean"},
    ],
    "tokenselect": [{"top_k": 0}, {"init": -1}, {"local": 0}, {"pool": 4}, {"threshold": 2.0}],
    "core": [{"group": 0}, {"window": 0}, {"heads": "all"}, {"pool": "sum"}],
    "streaming": [{"window": 0}, {"sinks": -1}],
    "snapkv": [{"budget": 8}, {"pool": 2}, {"observed": 0}],
    "heavy-hitters": [{"memory": 0}, {"local": 999}],
}


@pytest.mark.parametrize(("name", "options"), [(name, each) for name, all_ in WRONG.items() for each in all_])
def test_wrong_options_are_named(name, options):
    with pytest.raises(VistokError) as error:
        context.POLICIES[name](**options)
    assert any(str(key) in str(error.value) for key in options)


@pytest.mark.parametrize("options", [{"start": 9}, {"correction": 5}])
def test_a_layer_that_the_model_lacks_is_named(options, model):
    with pytest.raises(VistokError, match="0 to 4"):
        context.apply(model, context.TidalDecode(8, **options)) if "start" in options else context.apply(
            model, context.TidalDecode(8, 1, **options)
        )
