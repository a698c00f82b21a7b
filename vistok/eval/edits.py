"""What edits of a cached prompt cost and lose: beside a new reading of the edited text, on the embedded corpus.

Held-out passages are cached without some of their tokens, which stand in the first quarter; an edit puts them back.
Then the tokens behind the passage are scored, and a needle that the edit brought along is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok import context
from vistok.data.needles import NeedleText
from vistok.errors import VistokError
from vistok.eval.decoding.estimate import Estimate, paired_estimate
from vistok.eval.needle import finds
from vistok.models.huggingface import cache_argument, given_cache
from vistok.ops.noise import derive_seed

NEEDLE = 8  # tokens that have room for one


@dataclass(frozen=True)
class EditFigures:
    """Edits of some passages; intervals are of 95 %, by the bootstrap over passages.

    Attributes:
        length: tokens of the edited text.
        inserted: tokens that the edit brings.
        texts: passages.
        perplexity: of the tokens behind, by way: ``edit``, ``new reading``, and ``unedited`` text.
        change: perplexity behind an edit over that behind a new reading, less 1.
        saved: share of a new reading's multiply-adds that an edit saves.
        found: share of inserted needles that are found, by way.
    """

    length: int
    inserted: int
    texts: int
    perplexity: dict[str, Estimate]
    change: Estimate
    saved: float
    found: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def check_edit(length: int, inserted: int) -> None:
    """Refuses an insertion of ``inserted`` tokens into a text of ``length`` that is not measured.

    Raises:
        VistokError: it holds no needle, or does not fit into the first quarter.
    """
    if not NEEDLE <= inserted <= length // 4:
        raise VistokError(f"{inserted} tokens are inserted into {length}: take {NEEDLE} to a quarter of the text.")


@torch.no_grad()
def measure_edits(
    model: nn.Module,
    text: NeedleText,
    length: int,
    inserted: int,
    ahead: int,
    texts: int,
    *,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> EditFigures:
    """Inserts tokens into cached passages.

    Args:
        model: a causal LM whose keys can be turned.
        text: where passages come from, in its tokens.
        length: tokens of an edited passage.
        inserted: of them, tokens that the edit brings.
        ahead: tokens behind a passage that are scored.
        texts: passages.
        seed: of passages.
        advance: called behind each passage.

    Raises:
        VistokError: see ``check_edit``; or the model's keys cannot be turned.
    """
    check_edit(length, inserted)
    losses: dict[str, list[float]] = {"edit": [], "new reading": [], "unedited": []}
    found = dict.fromkeys(losses, 0)
    costs = []
    with context.apply(model, context.Full()):
        for row in range(texts):
            generator = torch.Generator().manual_seed(derive_seed(seed, row))
            within = 0.25 - inserted / length
            ids, (needle,) = text.passage(length + ahead, 1, generator, within)
            ids = ids.to(model.device)
            whole, rest = ids[:length], ids[length - 1 :]
            first, last = needle.start, needle.start + inserted
            before = torch.cat([whole[:first], whole[last:]])
            change = context.Edit(first, first, whole[first:last].tolist())
            edited = context.edit(model, before[None], _read(model, before[:-1]), [change])
            caches = {
                "edit": edited.cache,
                "new reading": _read(model, whole[:-1]),
                "unedited": _read(model, before[:-1]),
            }
            costs.append(edited.cost)
            for way, cache in caches.items():
                found[way] += finds(model, cache, needle, whole[-1:].tolist())
                losses[way].append(_loss(model, cache, rest))
            if advance is not None:
                advance()
    perplexity = {way: _perplexity(each) for way, each in losses.items()}
    change = paired_estimate(
        lambda one, other: np.exp((one - other) / texts) - 1, losses["edit"], losses["new reading"]
    )
    shares = {way: count / texts for way, count in found.items()}
    return EditFigures(length, inserted, texts, perplexity, change, 1 - sum(costs) / texts, shares)


def _perplexity(losses: list[float]) -> Estimate:
    return paired_estimate(lambda total: np.exp(total / len(losses)), losses)


def _read(model: nn.Module, ids: Tensor) -> Any:
    return given_cache(model(input_ids=ids[None], use_cache=True, logits_to_keep=1))


def _loss(model: nn.Module, cache: Any, ids: Tensor) -> float:
    """Mean loss in nats of tokens behind the first, which follows what the cache holds."""
    logits = model(input_ids=ids[None, :-1], use_cache=True, **{cache_argument(model): cache}).logits[0].float()
    return F.cross_entropy(logits, ids[1:]).item()
