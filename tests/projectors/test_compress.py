"""``vistok.compress`` on the real transformers classes: nothing changes with all tokens, everything fits with fewer."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from transformers import GenerationConfig

from tests.generate_options import NAMES, agrees, becomes
from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.projectors import (
    CDPruner,
    Compressor,
    CorrelationGuided,
    Coverage,
    Dart,
    DivPrune,
    FastV,
    GlobalCom2,
    HoloV,
    Kept,
    LayerCompressor,
    PruMerge,
    PyramidDrop,
    Random,
    SparseVLM,
    ToMe,
    Uniform,
    VisionZip,
    VisPruner,
    VtcCls,
    compress,
)
from vistok.projectors.apply.compress import active
from vistok.projectors.apply.concentric import concentric, concentric_of

NEW = {"max_new_tokens": 5, "do_sample": False}
END = tiny.VOCAB - 4  # a token of no prompt
KEEP_ALL = [
    VtcCls(1.0),
    GlobalCom2(1.0),
    VisionZip(1.0),
    DivPrune(1.0),
    PruMerge(1.0),
    ToMe(1.0),
    Uniform(1.0),
    Random(1.0),
    Coverage(1.0),
    VisPruner(1.0),
    CDPruner(1.0),
    HoloV(1.0),
    FastV(1.0),
    PyramidDrop(1.0),
    Dart(1.0),
]
FEWER = [
    VtcCls(0.25),
    VtcCls(9, start=-2),
    GlobalCom2(0.25),
    VisionZip(12),
    DivPrune(0.3),
    PruMerge(),
    PruMerge(7),
    ToMe(10),
    Uniform(7),
    Random(0.2),
    Coverage(0.25),
    CorrelationGuided(similarity=0.5),
    VisPruner(0.3),
    CDPruner(9),
    HoloV(0.3),
    FastV(0.25),
    PyramidDrop(0.25),
    SparseVLM(0.3, version=1),
    SparseVLM(0.3, version=2),
    Dart(0.25),
]


def called(value: object) -> str:
    return f"{value.name}-{value.keep}" if hasattr(value, "keep") else getattr(value, "name", None)


class ByBrightness(Compressor):
    """Counts that differ from picture to picture, as an adaptive method's do."""

    name = "by-brightness"

    def select(self, image):
        count = 3 + int(image.hidden.sum().abs() * 100) % 9
        return [Kept(valid.nonzero().squeeze(1)[:count]) for valid in image.valid]


@pytest.fixture(scope="module", params=["llava", "llava_next", "internvl", "qwen2_vl"])
def family(request):
    return getattr(tiny, request.param)(), getattr(tiny, f"{request.param}_inputs")


@pytest.fixture(scope="module")
def llava():
    return tiny.llava()


@pytest.fixture(scope="module")
def llava_next():
    return tiny.llava_next()


@pytest.mark.parametrize("compressor", KEEP_ALL, ids=called)
@pytest.mark.parametrize("name", ["llava", "llava_next"])
@torch.no_grad()
def test_all_tokens_give_the_plain_logits(name, compressor, request):
    model, inputs = request.getfixturevalue(name), getattr(tiny, f"{name}_inputs")()
    plain = model(**inputs).logits
    with compress(model, compressor):
        logits = model(**inputs).logits
    present = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[present], plain[present], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_all_tokens_on_every_family(family):
    model, make = family
    inputs = make()
    plain = model.generate(**inputs, **NEW, output_logits=True, return_dict_in_generate=True)
    with compress(model, Uniform(1.0)):
        got = model.generate(**inputs, **NEW, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(got.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(plain.logits), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compressor", FEWER, ids=called)
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_rows_of_a_batch_do_not_mix(name, compressor, request):
    """Different counts, lengths and pictures in one batch give what each row gives alone."""
    model, make = request.getfixturevalue(name), getattr(tiny, f"{name}_inputs")
    inputs = make()
    settings = NEW | {"output_logits": True, "return_dict_in_generate": True}
    with compress(model, compressor) as compression:
        batch = model.generate(**inputs, **settings)
        before, after = compression.last.before, compression.last.after
        assert len(after) >= 2
        assert all(n < m for n, m in zip(after, before, strict=True))
        if not isinstance(compressor, LayerCompressor):
            assert sum(before) == int((inputs["input_ids"] == tiny.IMAGE).sum())
        start = 0
        for row in range(2):
            present = inputs["attention_mask"][row].bool()
            alone = {key: inputs[key][row : row + 1, present] for key in ("input_ids", "attention_mask")}
            pictures = 1 if name == "llava_next" else row + 1
            for key in ("pixel_values", "image_sizes"):
                if key in inputs:
                    alone[key] = inputs[key][start : start + pictures]
            start += pictures
            single = model.generate(**alone, **settings)
            new = torch.stack(batch.logits)[:, row]
            torch.testing.assert_close(new, torch.stack(single.logits)[:, 0], atol=2e-5, rtol=1e-5)
            assert torch.equal(batch.sequences[row, present.numel() :], single.sequences[0, int(present.sum()) :])


def test_ragged_counts_on_every_family(family):
    model, make = family
    inputs = make()
    settings = NEW | {"output_logits": True, "return_dict_in_generate": True}
    with compress(model, ByBrightness()) as compression:
        batch = model.generate(**inputs, **settings)
        assert len(set(compression.last.after)) > 1
        beams = model.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert beams.shape == (4, inputs["input_ids"].shape[1] + 4)
    assert torch.equal(beams[::2, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert torch.equal(batch.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_generation_equals_a_loop_without_cache(llava):
    inputs = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
    with compress(llava, VtcCls(5)), torch.no_grad():
        got = llava.generate(**inputs, **NEW)[:, inputs["input_ids"].shape[1] :]
        grown = dict(inputs)
        for token in got[0]:
            assert int(llava(**grown).logits[0, -1].argmax()) == int(token)
            grown["input_ids"] = torch.cat([grown["input_ids"], token.view(1, 1)], 1)
            grown["attention_mask"] = torch.ones_like(grown["input_ids"])


def test_layers_behind_a_drop_cache_what_is_left(llava):
    inputs = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
    with compress(llava, FastV(5)):
        out = llava.generate(**inputs, **NEW, return_dict_in_generate=True)
    behind = NEW["max_new_tokens"] - 1  # the last token is not read
    full = inputs["input_ids"].shape[1] + behind
    lengths = [layer.keys.shape[2] for layer in given_cache(out).layers]
    assert lengths == [full] * 2 + [full - tiny.GRID**2 + 5] * (len(lengths) - 2)


@pytest.mark.parametrize(
    "compressor", [VtcCls(6), FastV(6), PyramidDrop(6), SparseVLM(6, version=1), GlobalCom2(0.25)], ids=called
)
def test_beams_and_sampling(llava, compressor):
    """Beams of one prompt are those of the prompt in a batch; a seed gives the same sample with and without a batch."""
    inputs = tiny.llava_inputs(pictures=(1, 1), lengths=((4, 3), (4, 3)))
    single = {key: value[:1] for key, value in inputs.items()}
    with compress(llava, compressor):
        both = llava.generate(**inputs, max_new_tokens=4, num_beams=3)
        one = llava.generate(**single, max_new_tokens=4, num_beams=3)
        torch.manual_seed(0)
        samples = llava.generate(**single, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert torch.equal(both[:1], one)
    assert samples.shape == (3, single["input_ids"].shape[1] + 4)
    assert (samples[:, : single["input_ids"].shape[1]] == single["input_ids"]).all()


@pytest.mark.parametrize(
    "compressor",
    [VtcCls(6), VisionZip(8), GlobalCom2(0.25), PruMerge(), FastV(6), PyramidDrop(6), SparseVLM(6)],
    ids=called,
)
def test_eager_and_sdpa_keep_the_same_tokens(compressor):
    got = []
    for attention in ("eager", "sdpa"):
        model = tiny.llava_next(attention)
        with compress(model, compressor) as compression:
            tokens = model.generate(**tiny.llava_next_inputs(), **NEW)
            got.append((tokens, [index.tolist() for index in compression.last.kept]))
    assert torch.equal(got[0][0], got[1][0])
    assert got[0][1] == got[1][1]


def test_no_attention_matrix_is_asked_for(llava, monkeypatch):
    """Methods that read attention see one query; the tower is never told to return its weights."""
    seen = {}
    tower = llava.model.vision_tower
    plain = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *a, **k: seen.update(k) or plain(*a, **k))

    class Looks(VtcCls):
        def select(self, image):
            assert all(layer.query.shape[1] == 1 for layer in image.attention.values())
            return super().select(image)

    with compress(llava, Looks(4)):
        llava.generate(**tiny.llava_inputs(), **NEW)
    assert not seen.get("output_attentions")


def test_bfloat16(llava):
    model = copy.deepcopy(llava).to(torch.bfloat16)
    inputs = tiny.llava_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for compressor in (VtcCls(6), VisionZip(8), PruMerge(), DivPrune(5), ToMe(6), FastV(6)):
        with compress(model, compressor):
            assert model.generate(**inputs, **NEW).shape[1] == inputs["input_ids"].shape[1] + 5


def test_right_padding_in_forward(llava):
    inputs = tiny.llava_inputs(left=False)
    with torch.no_grad(), compress(llava, VtcCls(6)):
        batch = llava(**inputs).logits
        for row, pictures in ((0, slice(0, 1)), (1, slice(1, 3))):
            present = inputs["attention_mask"][row].bool()
            ids = inputs["input_ids"][row : row + 1, present]
            alone = llava(input_ids=ids, pixel_values=inputs["pixel_values"][pictures]).logits[0]
            torch.testing.assert_close(batch[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "put",
    [
        *(lambda model, method=method: compress(model, method) for method in (VtcCls(9), PruMerge(), FastV(9))),
        lambda model: compress(model, VtcCls(9), positions="original"),
    ],
    ids=["vtc-cls", "prumerge", "fastv", "original"],
)
@pytest.mark.parametrize("where", ["call", "config", "model"])
def test_a_mask_that_is_not_given_is_read_from_padding_as_generate_reads_it(put, where, llava):
    """But where the pad token may be one that a prompt has: then every token counts."""
    model, inputs = copy.deepcopy(llava), tiny.llava_inputs()
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}

    def generated(ends, **given):
        tokens = {"pad_token_id": tiny.PAD, "eos_token_id": ends}
        if where == "model":
            model.generation_config.update(**tokens)
            return model.generate(**given, **NEW)
        return model.generate(**given, **(tokens | NEW if where == "call" else {"generation_config": config(tokens)}))

    def config(tokens):
        return GenerationConfig(**NEW, **tokens)

    with put(model):
        assert torch.equal(generated([END], **bare), generated([END], **inputs))
        every = torch.ones_like(inputs["input_ids"])
        ends = [END, tiny.PAD]
        assert torch.equal(generated(ends, **bare), generated(ends, **inputs | {"attention_mask": every}))


def test_right_padded_prompts_are_padded_left_to_generate(llava):
    left, right = tiny.llava_inputs(), tiny.llava_inputs(left=False)
    with compress(llava, VtcCls(6)):
        a, b = llava.generate(**left, **NEW), llava.generate(**right, **NEW)
    length = left["input_ids"].shape[1]
    assert torch.equal(a[:, length:], b[:, length:])
    assert torch.equal(b[:, :length], right["input_ids"])


def test_labels_and_gradients(llava):
    inputs = tiny.llava_inputs(left=False)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    llava.zero_grad()
    with compress(llava, VtcCls(6)):
        output = llava(**inputs, labels=labels)
        output.loss.backward()
    assert torch.isfinite(output.loss)
    assert llava.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    llava.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_generate_is_heeded(name, llava):
    inputs = tiny.llava_inputs()
    plain = becomes(lambda **options: llava.generate(**inputs, **options), name)
    with compress(llava, Uniform(1.0)):
        found = becomes(lambda **options: llava.generate(**inputs, **options), name)
    assert not isinstance(found, VistokError)
    assert agrees(found, plain), (found, plain)


def test_max_length_counts_the_prompt_as_given(llava):
    inputs = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
    length = inputs["input_ids"].shape[1] + 6
    with compress(llava, VtcCls(6)):
        assert llava.generate(**inputs, max_length=length, do_sample=False).shape[1] == length


def test_original_positions(llava):
    """Kept tokens at their old places see the text at the distance they had."""
    seen = []
    hook = llava.model.language_model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["position_ids"]), with_kwargs=True
    )
    inputs = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
    try:
        with compress(llava, Uniform(6), positions="original") as compression:
            llava.generate(**inputs, **NEW)
    finally:
        hook.remove()
    kept = compression.last.kept[0]
    expected = [*range(4), *(4 + kept).tolist(), *range(4 + 36, inputs["input_ids"].shape[1])]
    assert seen[0][0].tolist() == expected
    assert [int(p) for p in seen[1:]] == list(range(expected[-1] + 1, expected[-1] + len(seen)))


def test_text_alone_passes_through(llava):
    ids = torch.tensor([[1, 5, 9, 20]])
    plain = llava.generate(input_ids=ids, **NEW)
    for compressor in (VtcCls(4), FastV(4)):
        with compress(llava, compressor):
            assert torch.equal(llava.generate(input_ids=ids, **NEW), plain)


@pytest.mark.parametrize("compressor", [VtcCls(4), FastV(4)], ids=called)
def test_removal_leaves_no_trace(compressor):
    def hooks(model):
        return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]

    model, inputs = tiny.llava(), tiny.llava_inputs()
    plain = model.generate(**inputs, **NEW)  # transformers installs its own capturing hooks on first use
    before = (type(model), set(vars(model)), hooks(model), list(model.state_dict()))
    handle = compress(model, compressor)
    fewer = model.generate(**inputs, **NEW)
    assert not torch.equal(fewer, plain)
    handle.remove()
    handle.remove()
    assert before == (type(model), set(vars(model)), hooks(model), list(model.state_dict()))
    assert torch.equal(model.generate(**inputs, **NEW), plain)


def test_an_error_inside_leaves_no_trace(llava):
    kind = type(llava)
    with pytest.raises(VistokError, match="cannot keep 1000"), compress(llava, VtcCls(1000)):
        llava.generate(**tiny.llava_inputs(), **NEW)
    assert type(llava) is kind
    assert not any(m._forward_hooks for m in llava.model.vision_tower.modules() if hasattr(m, "weight"))


@pytest.mark.parametrize("compressor", [VtcCls(4), FastV(4)], ids=called)
@torch.no_grad()
def test_a_forward_that_is_broken_off_leaves_nothing_to_later_calls(compressor):
    model, inputs = tiny.llava(), tiny.llava_inputs()
    text = {name: inputs[name][:, -4:] for name in ("input_ids", "attention_mask")}
    told = {**NEW, "return_dict_in_generate": True}
    plain = model.generate(**text, **told)
    with compress(model, compressor):
        wanted = model.generate(**inputs, **NEW)
        handle = model.lm_head.register_forward_pre_hook(interrupt)
        for call in (model, partial(model.generate, **NEW)):
            with pytest.raises(KeyboardInterrupt):
                call(**inputs)
        handle.remove()
        short = model.generate(**text, **told)
        assert torch.equal(short.sequences, plain.sequences)
        assert vars(given_cache(short)).keys() == vars(given_cache(plain)).keys()  # nothing of the pictures is on it
        assert torch.equal(model.generate(**inputs, **NEW), wanted)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("compressor", [VtcCls(4), FastV(4)], ids=called)
def test_copies_and_pickles_stay_compressed(compressor):
    model, inputs = tiny.llava(), tiny.llava_inputs()
    handle = compress(model, compressor)
    pickled = pickle.dumps(model)  # before the first run: transformers then adds hooks that nothing can pickle
    fewer = model.generate(**inputs, **NEW)
    handle.remove()
    plain = model.generate(**inputs, **NEW)
    handle = compress(model, compressor)
    for other in (copy.deepcopy(model), pickle.loads(pickled)):
        assert torch.equal(other.generate(**inputs, **NEW), fewer)
        assert type(other) is type(model)
        active(other).remove()
        assert torch.equal(other.generate(**inputs, **NEW), plain)
        assert torch.equal(model.generate(**inputs, **NEW), fewer)
    handle.remove()


def test_saves_as_the_model_it_is(llava, tmp_path):
    from transformers import LlavaForConditionalGeneration

    with compress(llava, VtcCls(4)):
        assert isinstance(llava, LlavaForConditionalGeneration)
        llava.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.architectures == ["LlavaForConditionalGeneration"]


@pytest.mark.slow  # torch.compile traces the model, on a busy machine for minutes
def test_compiled_forward():
    model, inputs = tiny.llava(), tiny.llava_inputs()
    with compress(model, VtcCls(4)):
        expected = model.generate(**inputs, **NEW)
        model.forward = torch.compile(model.forward, backend="eager")
        assert torch.equal(model.generate(**inputs, **NEW), expected)
        del model.forward


def test_a_compiled_model_is_refused(llava):
    compiled = torch.nn.Module()
    compiled._orig_mod = llava  # what torch.compile(model) returns holds the model under this name
    with pytest.raises(VistokError, match=r"then torch\.compile"):
        compress(compiled, VtcCls(4))


def test_wrapped_as_peft_does(llava):
    class Wrapper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.base_model = model

        def get_base_model(self):
            return self.base_model

        def generate(self, **kwargs):
            return self.base_model.generate(**kwargs)

    inputs = tiny.llava_inputs()
    with compress(llava, VtcCls(4)):
        expected = llava.generate(**inputs, **NEW)
    wrapped = Wrapper(llava)
    with compress(wrapped, VtcCls(4)) as compression:
        assert torch.equal(wrapped.generate(**inputs, **NEW), expected)
        compiled = torch.nn.Module()
        compiled._orig_mod = wrapped
        assert active(wrapped) is active(compiled) is active(llava) is compression
        assert concentric_of(wrapped) is None
        with concentric(wrapped) as rings:
            assert concentric_of(wrapped) is concentric_of(llava) is rings
    assert active(wrapped) is None


def test_refusals_say_what_to_do(llava):
    inputs = tiny.llava_inputs()
    with pytest.raises(VistokError, match="supported for generation are llava"):
        compress(torch.nn.Linear(2, 2), VtcCls(4))
    with pytest.raises(VistokError, match="no compressor"):
        compress(llava, "vtc-cls")
    with pytest.raises(VistokError, match="'compact' or 'original'"):
        compress(llava, VtcCls(4), positions="old")
    with pytest.raises(VistokError, match="layer from 1 to 3"):
        compress(llava, FastV(4, layer=9))
    assert not llava._forward_pre_hooks
    with compress(llava, VtcCls(4)):
        with pytest.raises(VistokError, match="has a compressor already"):
            compress(llava, VtcCls(4))
        with pytest.raises(VistokError, match="no inputs_embeds"):
            llava.generate(pixel_values=inputs["pixel_values"], inputs_embeds=torch.zeros(1, 4, 48))
        with pytest.raises(VistokError, match="placeholders"):
            llava.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}, **NEW)
        with pytest.raises(VistokError, match="assistant"):
            llava.generate(**inputs, **NEW, assistant_model=llava)
    with compress(llava, FastV(4)), pytest.raises(VistokError, match="labels"):
        llava(**inputs, labels=inputs["input_ids"])
