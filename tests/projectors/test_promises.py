"""What users may lean on around a compressed ``generate``: limits, callables, streams, and that nothing is silent."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

from tests.projectors import tiny
from vistok.models.huggingface import cache_argument, given_cache
from vistok.projectors import FastV, LayerCompressor, PyramidDrop, SparseVLM, Uniform, VtcCls, compress

GREEDY = {"do_sample": False}
BOTH = pytest.mark.parametrize("compressor", [VtcCls(4), FastV(4), SparseVLM(9, version=1)], ids=lambda c: c.name)


@pytest.fixture(scope="module")
def llava():
    return tiny.llava()


@pytest.fixture
def inputs():
    return tiny.llava_inputs()


@pytest.mark.parametrize("where", ["argument", "config", "model", "criterion"])
@BOTH
def test_limits_count_the_prompt_as_given_wherever_they_stand(compressor, where, inputs):
    from transformers import GenerationConfig

    model = tiny.llava()
    length = inputs["input_ids"].shape[1]
    limits = {"max_length": length + 5, "min_length": length + 3}
    arguments = dict(GREEDY)
    if where == "argument":
        arguments |= limits
    elif where == "config":
        arguments = {"generation_config": GenerationConfig(**limits, **GREEDY, pad_token_id=0)}
    elif where == "model":
        model.generation_config.max_length, model.generation_config.min_length = limits.values()
    else:
        arguments |= {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(length + 5)]), "max_new_tokens": 9}
    with compress(model, compressor):
        assert model.generate(**inputs, **arguments).shape[1] == length + 5
        if where == "model":
            assert model.generate(**inputs, **GREEDY, max_new_tokens=7).shape[1] == length + 7
    if where == "model":
        assert model.generation_config.max_length == length + 5


@BOTH
def test_callables_see_the_prompts_as_given(llava, compressor, inputs):
    from transformers.generation.streamers import BaseStreamer

    prompts, seen = inputs["input_ids"], []

    def check(ids):
        seen.append(ids.shape[1])
        assert torch.equal(ids[:, : prompts.shape[1]], prompts.repeat_interleave(len(ids) // 2, 0))

    def processor(ids, scores):
        check(ids)
        return scores

    def criterion(ids, scores, **more):
        check(ids)
        return torch.full((len(ids),), ids.shape[1] >= prompts.shape[1] + 2)

    def allowed(row, ids):
        assert torch.equal(ids[: prompts.shape[1]], prompts[row])
        return [7, 8]

    class Streamer(BaseStreamer):
        heard, ended = (), False

        def put(self, value):
            self.heard = (*self.heard, value)

        def end(self):
            self.ended = True

    streamer = Streamer()
    with compress(llava, compressor):
        out = llava.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=6,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([criterion]),
            prefix_allowed_tokens_fn=allowed,
        )
        one = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
        tokens = llava.generate(**one, **GREEDY, max_new_tokens=3, streamer=streamer)
    assert out.shape[1] == prompts.shape[1] + 2
    assert set(seen) == {prompts.shape[1], prompts.shape[1] + 1, prompts.shape[1] + 2}
    assert set(out[:, prompts.shape[1] :].flatten().tolist()) <= {7, 8}
    assert streamer.ended
    assert torch.equal(torch.cat([value.flatten() for value in streamer.heard]), tokens[0])


@BOTH
def test_nothing_of_an_older_call_is_told(llava, compressor, inputs):
    with compress(llava, compressor) as compression:
        llava.generate(**inputs, **GREEDY, max_new_tokens=2)
        assert len(compression.last.lengths) == len(compression.last.visual) == 2
        llava.generate(input_ids=torch.tensor([[1, 5, 9]]), **GREEDY, max_new_tokens=2)
        assert compression.last.before == compression.last.after == compression.last.lengths == []
        llava(**inputs)
        assert len(compression.last.visual) == 2
        llava(input_ids=torch.tensor([[1, 5, 9]]))
        assert compression.last.before == []


@BOTH
def test_two_streams_in_turn(compressor):
    """Each stream's tokens are those that it has alone."""
    model = tiny.llava()
    batches = [tiny.llava_inputs(), tiny.llava_inputs((2, 1), ((3, 9), (5, 1)), seed=4)]
    with torch.no_grad(), compress(model, compressor):
        alone = [model.generate(**batch, **GREEDY, max_new_tokens=4)[:, -4:] for batch in batches]
        outputs = [model(**batch, past_key_values=DynamicCache(), use_cache=True) for batch in batches]
        tokens = [[], []]
        for step in range(4):
            for i in (1, 0):
                tokens[i].append(outputs[i].logits[:, -1].argmax(-1))
                mask = torch.cat([batches[i]["attention_mask"], torch.ones(2, step + 1, dtype=torch.int64)], 1)
                cache = given_cache(outputs[i])
                outputs[i] = model(tokens[i][-1][:, None], attention_mask=mask, past_key_values=cache)
    for i in range(2):
        assert torch.equal(torch.stack(tokens[i], 1), alone[i])


@BOTH
def test_guidance_runs_beside_the_prompt(llava, compressor, inputs):
    """transformers' guidance runs the last token in a cache of its own."""
    with compress(llava, compressor):
        plain = llava.generate(**inputs, **GREEDY, max_new_tokens=4)
        guided = llava.generate(**inputs, **GREEDY, max_new_tokens=4, guidance_scale=1.0 + 1e-6)
        strong = llava.generate(**inputs, **GREEDY, max_new_tokens=4, guidance_scale=3.0)
    assert torch.equal(plain, guided)
    assert strong.shape == plain.shape


@pytest.mark.parametrize("seed", range(4))
@BOTH
def test_prompt_lookup_and_assistants_change_nothing(llava, compressor, seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    inputs = tiny.llava_inputs(pictures=(1,), lengths=((5, 9),), seed=seed)
    inputs["input_ids"][0, -8:] = torch.tensor([5, 6, 7, 5, 6, 7, 5, 6])
    assistant = LlamaForCausalLM(LlamaConfig(**_small())).eval()
    with compress(llava, compressor):
        plain = llava.generate(**inputs, **GREEDY, max_new_tokens=8)
        looked = llava.generate(**inputs, **GREEDY, max_new_tokens=8, prompt_lookup_num_tokens=3)
        assert torch.equal(looked, plain)
        if isinstance(compressor, LayerCompressor):
            assisted = llava.generate(**inputs, **GREEDY, max_new_tokens=8, assistant_model=assistant)
            assert torch.equal(assisted, plain)


@torch.no_grad()
def test_candidates_behind_a_prompt_leave_no_trace_in_a_cropped_cache(llava):
    """Assisted decoding runs the prompt with candidates behind it, and crops those that are refused."""
    from transformers import DynamicCache

    inputs = tiny.llava_inputs(pictures=(1,), lengths=((5, 9),), seed=0)
    logits = []
    with compress(llava, FastV(keep=3, layer=2)):
        for widths in ([1, 1], [2]):
            cache = DynamicCache(config=llava.config.get_text_config())
            llava(**inputs, **{cache_argument(llava): cache})
            cache.crop(-3)
            pieces, start = [], 7
            for width in widths:
                tokens = torch.arange(start, start + width)[None]
                pieces.append(llava(input_ids=tokens, **{cache_argument(llava): cache}).logits)
                start += width
            logits.append(torch.cat(pieces, 1))
    assert torch.allclose(*logits, atol=1e-5)


def _small():
    return {
        "vocab_size": tiny.VOCAB,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_vl"])
@pytest.mark.parametrize("compressor", [Uniform(0.3), FastV(4), PyramidDrop(4), SparseVLM(6)], ids=lambda c: c.name)
def test_right_padding_is_that_of_the_left(name, compressor):
    model, make = getattr(tiny, name)(), getattr(tiny, f"{name}_inputs")
    left, right = make(), make(left=False)
    width = left["input_ids"].shape[1]
    with compress(model, compressor):
        a, b = (model.generate(**x, **GREEDY, max_new_tokens=4) for x in (left, right))
    assert torch.equal(a[:, width:], b[:, width:])
    assert torch.equal(b[:, :width], right["input_ids"])
