"""Policies that keep a bounded number of rows: what a layer keeps is decided chunk by chunk, as the text goes by."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from vistok.context.interface import Policy, Step, causal
from vistok.ops.selection import decode


class Keeper(Policy):
    """Base of policies that drop rows: before each chunk of tokens a layer may shrink its rows; then the chunk attends
    to what is left and to itself.

    Attributes:
        chunk: tokens of a prompt that go together.
        scored: the policy wants to know how much attention each row got.
    """

    keeps_all = False
    scored: ClassVar[bool] = False
    chunk: int

    @abstractmethod
    def shrink(self, layer: int, k: Tensor, v: Tensor, received: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Returns what a layer keeps of its rows before the next tokens come.

        Args:
            layer: index of the layer.
            k, v: rows of sequences of one length [B, H, S, D].
            received: attention that each row got from the tokens of the last chunk, [B, H, S], summed over them and
                over the query heads of the group; None unless ``scored``.

        Returns:
            Fewer rows, or None to keep all.
        """

    def visible(self, tokens: int, before: int, new: int) -> Tensor | None:
        """Returns which of ``before + new`` rows the new tokens see, bool [1, T, S]; ``tokens`` came before them."""
        return None if new == 1 else causal(torch.tensor([before]), new, before + new)

    def reset(self) -> None:
        self._received: dict[int, list[Tensor]] = {}

    def reorder(self, sequences: Tensor) -> None:
        for layer, received in self._received.items():
            rows = [part[b : b + 1] for part in received for b in range(len(part))]
            self._received[layer] = [rows[b] for b in sequences.tolist()]

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        cache, out, lengths = step.cache, torch.zeros_like(q), []
        earlier = self._received.pop(layer, [])
        groups = step.groups()
        if len(earlier) != len(groups) and earlier:  # sequences that went together do no longer
            earlier = [part[b : b + 1] for part in earlier for b in range(len(part))]
        ends = []
        for number, (which, rows, count) in enumerate(groups):
            received = earlier[number][..., :rows] if earlier else k.new_zeros(*k[which].shape[:2], rows)
            for first in range(0, count, self.chunk):
                last = min(first + self.chunk, count)
                kept = self.shrink(layer, *(x[layer, which, :, :rows] for x in (cache.keys, cache.values)), received)
                if kept is not None:
                    cache.replace(layer, *(x.detach() for x in kept), which)
                    rows = kept[0].shape[2]
                new = (k[which, :, first:last], v[which, :, first:last])
                cache.replace(layer, *(x.detach() for x in new), which, rows)
                seen = self.visible(int(step.tokens[which][0]) + first, rows, last - first)
                part = [x[layer, which, :, : rows + last - first] for x in (cache.keys, cache.values)]
                if torch.is_grad_enabled():  # gradients reach this chunk and what has just been mixed, no further back
                    old = [x[:, :, :rows].clone() for x in part] if kept is None else kept
                    part = [torch.cat(pair, 2) for pair in zip(old, new, strict=True)]
                rows += last - first
                found, received = self._attention(q[which, :, first:last], *part, seen, scale)
                out[which, :, first:last] = found
                step.count(rows * len(found) / len(q), rows * len(found) / len(q))
            lengths.append(rows)
            ends.append(received)
        if self.scored:
            self._received[layer] = ends
        step.settle(lengths)
        return out

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns attention [B, Hq, T, D], and what each row got of it where that is wanted."""
        visible = None if visible is None else visible.to(q.device)
        if not self.scored:
            return decode(q, k, v, None if visible is None else visible[:, None], scale), None
        weights = attention_weights(q, k, visible, scale)
        out = weights.to(v.dtype).flatten(2, 3) @ v
        return out.view(q.shape), weights.detach().sum((2, 3))


def attention_weights(q: Tensor, k: Tensor, visible: Tensor | None, scale: float | None) -> Tensor:
    """Returns the softmax [B, Hkv, G, T, S] of queries [B, Hq, T, D] over keys [B, Hkv, S, D], of which tokens see
    ``visible``, bool [B or 1, T, S].
    """
    grouped = q.unflatten(1, (k.shape[1], -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = (grouped.flatten(2, 3) @ k.mT).unflatten(2, grouped.shape[2:4])
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    return scores.softmax(-1)


def top_rows(scores: Tensor, count: int, local: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the rows of highest score, beside the last ones.

    Args:
        scores: [B, H, S].
        count: rows to name, the last ones included.
        local: last rows, which are always named.

    Returns:
        Named rows and the other ones, int64 [B, H, count] and [B, H, S - count], each in order.
    """
    ranks = scores.clone()
    if local:
        ranks[..., -local:] = torch.inf
    named = torch.zeros_like(ranks, dtype=torch.bool).scatter(-1, ranks.topk(count).indices, True)
    order = (~named).to(torch.int8).sort(dim=-1, stable=True).indices
    return order[..., :count], order[..., count:]
