"""Concentric causal attention on a LLaVA of transformers: what the layout of one prompt says, in every batch."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument, given_cache
from vistok.ops.concentric import concentric_layout, concentric_mask, concentric_positions
from vistok.projectors import DivPrune, FastV, SparseVLM, Uniform, compress, concentric
from vistok.projectors.apply.concentric import concentric_of

NEW = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def llava():
    return tiny.llava()


def rows(inputs):
    """Ids of each row without padding, and how many pictures the rows before have."""
    start = 0
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        line = ids[mask.bool()]
        pictures = int((line == tiny.IMAGE).sum()) // tiny.GRID**2
        yield line, inputs["pixel_values"][start : start + pictures]
        start += pictures


def layout_of(line, length):
    starts, place = [], 0
    visual = line == tiny.IMAGE
    while place < len(line):
        if visual[place]:
            starts.append((place, tiny.GRID, tiny.GRID))
            place += tiny.GRID**2
        else:
            place += 1
    return concentric_layout(length, starts)


@torch.no_grad()
def oracle(model, line, pixels, columns=None, tokens=()):
    """Logits of a prompt and what follows it, by layout and mask of the whole, at some columns, without a cache."""
    ids = torch.cat([line, torch.tensor(tokens, dtype=torch.long)])
    layout = layout_of(line, len(ids))
    mask = concentric_mask(layout)
    columns = torch.arange(len(line)) if columns is None else columns
    columns = torch.cat([columns, torch.arange(len(line), len(ids))])
    embeds = model.get_input_embeddings()(ids)
    features = model.model.get_image_features(pixel_values=pixels).pooler_output
    embeds[ids == tiny.IMAGE] = torch.cat(list(features))
    bias = torch.zeros(len(columns), len(columns)).masked_fill(~mask[columns][:, columns], -torch.inf)
    states = model.model.language_model(
        inputs_embeds=embeds[columns][None],
        attention_mask=bias[None, None],
        position_ids=layout.position[columns][None],
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(states)[0]


@pytest.mark.parametrize("height, width", [(6, 6), (5, 5), (5, 7), (1, 3), (2, 2)])
@pytest.mark.parametrize("left", [True, False])
def test_positions_of_a_batch_are_those_of_each_prompt(height, width, left):
    lines = [[0] * 3 + [1] * height * width + [0] + [1] * height * width + [0] * 2, [1] * height * width + [0] * 4]
    size = max(map(len, lines))
    visual, present = torch.zeros(2, size, dtype=torch.bool), torch.zeros(2, size, dtype=torch.long)
    for row, line in enumerate(lines):
        at = slice(size - len(line), size) if left else slice(len(line))
        visual[row, at], present[row, at] = torch.tensor(line) > 0, 1
    got = concentric_positions(visual, present, height, width)
    starts = [[(3, height, width), (4 + height * width, height, width)], [(0, height, width)]]
    for row, line in enumerate(lines):
        layout = concentric_layout(len(line), starts[row])
        assert torch.equal(got[row, present[row].bool()], layout.position)
        position = layout.position
        assert torch.equal(position[None] <= position[:, None], concentric_mask(layout))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_logits_are_those_of_the_layout(attention, left):
    model, inputs = tiny.llava(attention), tiny.llava_inputs(left=left)
    with concentric(model):
        logits = model(**inputs).logits
    for row, (line, pixels) in enumerate(rows(inputs)):
        mine = logits[row, inputs["attention_mask"][row].bool()]
        torch.testing.assert_close(mine, oracle(model, line, pixels), atol=2e-5, rtol=1e-4)
    assert concentric_of(model) is None
    assert not torch.allclose(model(**inputs).logits, logits, atol=1e-2)


@pytest.mark.parametrize("first", ["compress", "concentric"])
@pytest.mark.parametrize("compressor", [None, Uniform(0.3), DivPrune(7)], ids=lambda c: getattr(c, "name", "plain"))
def test_generation_equals_a_loop_without_cache(llava, compressor, first):
    """Also with fewer tokens, whichever of the two is put on first: kept cells stay on their rings."""
    inputs = tiny.llava_inputs()
    handles = [] if compressor is None else [lambda: compress(llava, compressor)]
    handles.insert(0 if first == "concentric" else len(handles), lambda: concentric(llava))
    opened = [handle() for handle in handles]
    got = llava.generate(**inputs, **NEW)
    kept = next((h.last.kept for h in opened if hasattr(h, "last")), None)
    for handle in opened:
        handle.remove()
    length, picture = inputs["input_ids"].shape[1], 0
    for row, (line, pixels) in enumerate(rows(inputs)):
        columns = None
        if kept is not None:
            stays, places = line != tiny.IMAGE, (line == tiny.IMAGE).nonzero().squeeze(1).view(-1, tiny.GRID**2)
            for mine, index in zip(places, kept[picture:], strict=False):
                stays[mine[index.flatten()]] = True
            picture += len(places)
            columns = stays.nonzero().squeeze(1)
        said = got.sequences[row, length:].tolist()
        logits = oracle(llava, line, pixels, columns, said[:-1])
        torch.testing.assert_close(torch.stack(got.logits)[:, row], logits[-len(said) :], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("compressor", [FastV(5), SparseVLM(8)], ids=lambda c: c.name)
def test_rows_do_not_mix_where_the_language_model_drops_tokens(llava, compressor):
    inputs = tiny.llava_inputs()
    with concentric(llava), compress(llava, compressor):
        batch = llava.generate(**inputs, **NEW)
        for row, (line, pixels) in enumerate(rows(inputs)):
            alone = llava.generate(input_ids=line[None], pixel_values=pixels, **NEW)
            mine = torch.stack(batch.logits)[:, row]
            torch.testing.assert_close(mine, torch.stack(alone.logits)[:, 0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cache_knows_its_next_position(llava):
    inputs = tiny.llava_inputs()
    with concentric(llava):
        sequences = llava.generate(**inputs, **NEW).sequences
        cache = DynamicCache(config=llava.config.get_text_config())
        llava(**inputs, use_cache=True, **{cache_argument(llava): cache})
        length = inputs["input_ids"].shape[1]
        for step in range(1, 5):
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, step), value=1)
            token = sequences[:, length + step - 1 : length + step]
            logits = llava(input_ids=token, attention_mask=mask, **{cache_argument(llava): cache}).logits
            assert torch.equal(logits[:, -1].argmax(-1), sequences[:, length + step])


@torch.no_grad()
def test_a_forward_that_is_broken_off_leaves_no_position_to_later_caches(llava):
    inputs = tiny.llava_inputs()
    text = {name: inputs[name][:, -4:] for name in ("input_ids", "attention_mask")}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with concentric(llava):
        plain = llava(**text)
        handle = llava.model.language_model.norm.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llava(**inputs)
        handle.remove()
        assert vars(given_cache(llava(**text))).keys() == vars(given_cache(plain)).keys()


def test_what_cannot_be_is_refused(llava):
    with pytest.raises(VistokError, match="llava_next"):
        concentric(tiny.llava_next())
    inputs = tiny.llava_inputs()
    with concentric(llava):
        cut = {name: inputs[name][:, 6:] for name in ("input_ids", "attention_mask")}
        with pytest.raises(VistokError, match="placeholders"):
            llava(**cut, pixel_values=inputs["pixel_values"])
        with pytest.raises(VistokError, match="cache_implementation"):
            llava.generate(**inputs, max_new_tokens=2, cache_implementation="static")
        with pytest.raises(VistokError, match="already"):
            concentric(llava)
    flash = tiny.llava()
    flash.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(VistokError, match="sdpa"):
        concentric(flash)
