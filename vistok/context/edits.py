"""Edits of a cached prompt: kept keys are turned to their new positions, and only inserted text is run.

Positional integrity encoding (PIE, arXiv 2407.03157): rows behind an edit keep their values, and their keys are rotated
by as many positions as they moved; in deeper layers they remember the text as it was, which the paper accepts. Differs
from the paper: several edits of several sequences at once, any layout and any fixed table of rotations, and the saved
compute is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vistok.context.attachment import Context, active
from vistok.context.cache import ContextCache
from vistok.errors import VistokError
from vistok.models.attach import unwrapped
from vistok.models.huggingface import cache_argument, head_width
from vistok.ops.reencode import EditPlan, plan_edits, reencode_keys


class Edit(NamedTuple):
    """An edit: tokens ``start .. end - 1`` of a text give way to ``tokens``. None deletes, ``start == end`` inserts."""

    start: int
    end: int
    tokens: Sequence[int] = ()


@dataclass
class Edited:
    """Texts after an edit, and their cache.

    Attributes:
        ids: the texts, padded on the left, int64 [B, T].
        mask: which tokens are real, int64 [B, T].
        cache: of all their tokens but the last, which ``generate`` runs.
        run: tokens that the edit and the next step run, sum over sequences.
        whole: tokens of the texts, which a new prefill would run.
        cost: multiply-adds of the edit and the next step over those of a new prefill.
    """

    ids: Tensor
    mask: Tensor
    cache: ContextCache
    run: int
    whole: int
    cost: float

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """Returns the arguments with which ``model.generate`` continues the texts; the cache goes on to hold what it
        adds.
        """
        argument = cache_argument(unwrapped(model))
        return {"input_ids": self.ids, "attention_mask": self.mask, argument: self.cache}


@torch.no_grad()
def edit(
    model: nn.Module,
    ids: Tensor,
    cache: ContextCache,
    edits: Sequence[Edit] | Sequence[Sequence[Edit]],
    attention_mask: Tensor | None = None,
    pad: int = 0,
) -> Edited:
    """Changes cached texts, and makes their cache follow.

    Args:
        model: a causal LM under a policy of ``vistok.context.apply`` whose rows can be edited: ``Full`` or
            ``TidalDecode``.
        ids: the texts as they are, padded on the left, int64 [B, T].
        cache: what a call under the policy returned for them: of all tokens, or of all but the last. It is changed.
        edits: sorted and disjoint, of the one text, or of each; places are counted without padding.
        attention_mask: which tokens are real, [B, T]; all if None.
        pad: token that fills shorter texts.

    Returns:
        The new texts; ``model.generate(**edited.arguments(model))`` continues them.

    Raises:
        VistokError: the policy or the model's rotations allow no edits, edits overlap or leave the text, a text ends up
            empty, or the cache is not that of the texts.
    """
    context = active(unwrapped(model))
    if context is None or not context.policy.drafts:
        what = "no policy" if context is None else context.policy.name
        raise VistokError(f"the model is under {what}: edit under vistok.context.apply(model, vistok.context.Full()).")
    ids = ids[None] if ids.dim() == 1 else ids
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    each = [edits] if edits and isinstance(edits[0], Edit) else list(edits) or [[]]
    texts = [row[real] for row, real in zip(ids, mask.bool(), strict=True)]
    if len(each) != len(texts):
        raise VistokError(f"{len(texts)} texts need as many lists of edits, got {len(each)}.")
    _check_cache(cache, texts)
    cached, ran, changed, costs = cache.tokens.tolist(), [], [], [0.0, 0.0]
    plans = [_plan(context, text, its) for text, its in zip(texts, each, strict=True)]  # before anything is changed
    cache.broken = True  # until all is done
    for b, (text, its) in enumerate(zip(texts, each, strict=True)):
        new, fresh = _edit_one(context, cache, b, text, cached[b], its, plans[b])
        changed.append(new)
        ran.append(len(fresh) + 1)
        for part, (tokens, pairs) in enumerate(_work(fresh.tolist(), len(new))):
            costs[part] += tokens * _weights(context.decoder) + pairs * _pair(context.config)
    out, real = _padded(changed, pad)
    cache.tokens = real.sum(1) - 1
    cache.columns = out.shape[1] - 1
    cache.rows.crop(cache.columns if bool(real.all()) else cache.tokens)
    cache.broken = False
    return Edited(out, real.long(), cache, sum(ran), int(real.sum()), costs[0] / costs[1])


def _padded(texts: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Returns texts padded on the left, int64 [B, T], and which of their tokens are real, bool [B, T]."""
    ids = pad_sequence(texts, batch_first=True, padding_value=pad, padding_side="left")
    lengths = torch.tensor([len(text) for text in texts], device=ids.device)
    return ids, torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths[:, None]


def _check_cache(cache: ContextCache, texts: list[Tensor]) -> None:
    if not isinstance(cache, ContextCache) or cache.rows is None:
        raise VistokError("there is nothing to edit: give the cache that a call under the policy has filled.")
    cache.check()
    wanted = [len(text) for text in texts]
    held = cache.tokens.tolist()
    if len(held) != len(wanted) or any(n - c not in (0, 1) for n, c in zip(wanted, held, strict=True)):
        raise VistokError(
            f"the cache holds {held} tokens and the texts have {wanted}: give the texts whose tokens, or all tokens "
            "but the last, it holds."
        )


def _plan(context: Context, text: Tensor, edits: Sequence[Edit]) -> EditPlan:
    """Returns where the tokens of a text go, if they can."""
    table = torch.tensor([(e.start, e.end, len(e.tokens)) for e in edits], dtype=torch.int64).view(-1, 3)
    plan = plan_edits(len(text), table.to(text.device))
    if plan.length == 0:
        raise VistokError("the edits leave no token of a text: keep at least one.")
    rotary = context.rotary
    if rotary.limit is not None and max(len(text), plan.length) > rotary.limit:
        raise VistokError(
            f"the model changes its rotations beyond {rotary.limit} tokens (longrope), and this text crosses them: "
            "edit shorter texts."
        )
    return plan


def _edit_one(
    context: Context,
    cache: ContextCache,
    sequence: int,
    text: Tensor,
    cached: int,
    edits: Sequence[Edit],
    plan: EditPlan,
) -> tuple[Tensor, Tensor]:
    """Returns the new text, and the places of its tokens that were run."""
    rotary = context.rotary
    new = text.new_empty(plan.length)
    new[plan.position] = text[plan.kept]
    inserted = [int(token) for e in edits for token in e.tokens]
    new[plan.inserted] = torch.tensor(inserted, dtype=text.dtype, device=text.device)
    here = (plan.kept < cached) & (plan.position < plan.length - 1)
    kept, position = plan.kept[here], plan.position[here]
    fresh = torch.ones(plan.length - 1, dtype=torch.bool, device=text.device)
    fresh[position] = False
    fresh = fresh.nonzero().squeeze(1)
    cache.rows.reserve(plan.length)
    moved = kept != position
    if bool(moved.any()):

        def turn(keys: Tensor, rows: Tensor, to: Tensor) -> Tensor:
            layers = [
                reencode_keys(k, rows, to, rotary.frequencies, rotary.layout) if turns else k.index_select(1, rows)
                for k, turns in zip(keys, rotary.turns, strict=True)
            ]
            return torch.stack(layers)

        cache.rows.move(sequence, kept[moved], position[moved], turn)
    if len(fresh):
        context.fill(cache, sequence, new[fresh], fresh, plan.length - 1)
    return new, fresh


def _work(fresh: list[int], length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns tokens and pairs of tokens that attend, of the edit with the last token's step, and of a new prefill."""
    return (len(fresh) + 1, sum(fresh) + len(fresh) + length), (length, length * (length + 1) // 2)


def _weights(decoder: nn.Module) -> int:
    """Returns the multiply-adds that a token costs in the decoder's layers, but for attention."""
    return sum(parameter.numel() for parameter in decoder.layers.parameters())


def _pair(config: Any) -> int:
    """Returns the multiply-adds that a pair of tokens costs in all layers."""
    return 2 * config.num_hidden_layers * config.num_attention_heads * head_width(config)
