"""Methods that drop in stages, against a plain loop over layers with whole attention matrices, one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.projectors import PyramidDrop, SparseVLM, compress
from vistok.projectors.methods.pyramiddrop import stages_in
from vistok.projectors.methods.sparsevlm import BUDGETS, STAGES, TOKENS, budget_shares, text_raters


def rotated(layer, x, name, rotary):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    attention = layer.self_attn
    y = getattr(attention, f"{name}_proj")(layer.input_layernorm(x)).unflatten(-1, (-1, attention.head_dim))
    y = apply_rotary_pos_emb(y[None].transpose(1, 2), y[None].transpose(1, 2), *(t[None] for t in rotary))[0]
    return y[0].repeat_interleave(4 // y.shape[1], 0)  # [H, S, d]


def weights(layer, x, rotary):
    q, k = (rotated(layer, x, name, rotary) for name in ("q", "k"))
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return (logits + torch.full(logits.shape[-2:], -torch.inf).triu(1)).softmax(-1)


@torch.no_grad()
def oracle(model, ids, pixels, stages, scores, counts):
    """Logits of one prompt of which ``counts[i]`` visual tokens go on at ``stages[i]``, and the columns at the end."""
    decoder = model.model.language_model
    hidden = model.get_input_embeddings()(ids)
    visual = ids == tiny.IMAGE
    hidden[visual] = torch.cat(list(model.model.get_image_features(pixel_values=pixels).pooler_output))
    raters = torch.zeros_like(visual)
    text = ~visual & (torch.arange(len(ids)) > int(visual.nonzero()[-1]))
    raters[text] = text_raters(hidden[visual], hidden[text])
    columns = torch.arange(len(ids))
    every = [t[0] for t in decoder.rotary_emb(hidden[None], columns[None])]
    before = None
    for index, layer in enumerate(decoder.layers):
        rotary = [t[columns] for t in every]
        if index in stages:
            score = scores(layer, hidden, rotary, before, raters[columns])
            best = score.masked_fill(~visual[columns], -torch.inf).topk(counts[stages.index(index)]).indices
            stays = (~visual[columns]).scatter(0, best, True)
            hidden, columns = hidden[stays], columns[stays]
            rotary = [t[columns] for t in every]
        before = weights(layer, hidden, rotary)
        mask = torch.full((len(hidden), len(hidden)), -torch.inf).triu(1)[None, None]
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=tuple(t[None] for t in rotary))[0]
    return model.lm_head(decoder.norm(hidden)), columns


def pyramid(layer, hidden, rotary, before, raters):
    return weights(layer, hidden, rotary)[:, -1].mean(0)


def sparse(layer, hidden, rotary, before, raters):
    return before[:, raters].mean((0, 1))


def check(model, compressor, scores, counts, stages=(1, 2, 3)):
    inputs, start = tiny.llava_inputs(), 0
    with torch.no_grad(), compress(model, compressor) as compression:
        logits = model(**inputs).logits
        kept, lengths = compression.last.kept, compression.last.lengths
    for row in range(2):
        ids = inputs["input_ids"][row, inputs["attention_mask"][row].bool()]
        pixels = inputs["pixel_values"][start : start + row + 1]
        start += row + 1
        whole = len(pixels) * tiny.GRID**2
        expected, columns = oracle(model, ids, pixels, stages, scores, counts(whole))
        torch.testing.assert_close(logits[row, -len(columns) :], expected, atol=5e-5, rtol=1e-3)
        assert (kept[row] - (inputs["input_ids"].shape[1] - len(ids))).tolist() == columns.tolist()
        assert lengths[row] == [len(ids) - whole + n for n in (whole, *counts(whole))]


def test_pyramiddrop_is_what_the_loop_gives():
    check(tiny.llava(), PyramidDrop(0.125), pyramid, lambda n: [round(n / 2), round(n / 4), round(n / 8)])


def test_sparsevlm_is_what_the_loop_gives():
    """Version 1's ranking without recycling, which the golden case pins."""

    class Ranked(SparseVLM):
        def _scores(self, view):
            self.version = 1
            scores = super()._scores(view)
            self.version = 2
            return scores

    def counts(n):
        out = [n]
        for share in budget_shares(1 / 3, 2):
            out.append(max(1, min(round(share * n), out[-1] - 1)))
        return out[1:]

    check(tiny.llava(), Ranked(1 / 3, version=2), sparse, counts)


@pytest.mark.parametrize("version", [1, 2])
def test_budgets_are_the_published_ones(version):
    for budget, counts in BUDGETS[version].items():
        assert [round(TOKENS * share) for share in budget_shares(budget / TOKENS, version)] == list(counts)
    assert budget_shares(1.0, version) == (1.0, 1.0, 1.0)
    middle = budget_shares(160 / TOKENS, version)
    assert all(0 < share < 1 for share in middle)


@pytest.mark.parametrize(
    "total, earliest, layers",
    [(32, 1, (3, 7, 16)), (16, 1, (2, 4, 8)), (4, 1, (1, 2, 3)), (4, 2, (2, 3)), (2, 1, (1,))],
)
def test_stages_are_fractions_of_the_depth(total, earliest, layers):
    assert stages_in(STAGES, total, earliest, "sparsevlm") == layers


@pytest.mark.parametrize("kind", [PyramidDrop, SparseVLM])
def test_mistakes_get_one_sentence(kind):
    for wrong in ((3, 2, 1), (1, 2, 9), (0, 1, 2)):
        with pytest.raises(VistokError, match=kind.name):
            compress(tiny.llava(), kind(0.5, layers=wrong))
    with pytest.raises(VistokError, match="1"):
        stages_in(STAGES, 1, 1, kind.name)
    with pytest.raises(VistokError, match="version"):
        SparseVLM(version=3)
    with pytest.raises(VistokError, match="three"):
        SparseVLM(layers=(1, 2))
