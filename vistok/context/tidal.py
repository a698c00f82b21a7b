"""TidalDecode (arXiv 2410.05076): the keys that two layers choose serve the layers between and behind them.

Differs from the released code: one choice serves all query heads of a key/value head (``heads="query"`` chooses for
each, as published, and reads up to Hq / Hkv times as many rows); chosen rows are gathered, so that time falls with
them; a draft of several tokens has one choice, by its best score over the draft, and always reads its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vistok.context.interface import Policy, Step, at_least
from vistok.errors import VistokError
from vistok.ops.selection import gathered_attention


@dataclass
class TidalDecode(Policy):
    """Layers before ``start`` attend to all keys; layers ``start`` and ``correction`` do, and choose ``top_k`` for
    those behind them.

    Args:
        top_k: keys that a head of a sparse layer reads.
        start: the first layer that chooses.
        correction: the layer that chooses anew; a little below the middle by default.
        heads: who chooses: each key/value head, or each query head.
        pool: how the heads of a group, and the tokens of a draft, agree: by their ``max`` score, or by the sum of their
            softmax (``vote``).
    """

    top_k: int = 256
    start: int = 2
    correction: int | None = None
    heads: Literal["kv", "query"] = "kv"
    pool: Literal["max", "vote"] = "max"
    chosen: Tensor | None = field(default=None, init=False, repr=False)  # [B, Hs, M], of the forward in progress
    _seen: Tensor | None = field(default=None, init=False, repr=False)

    name = "tidal"
    drafts = True

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k, 1)
        at_least("start", self.start, 0)
        for name, value, known in (("heads", self.heads, ("kv", "query")), ("pool", self.pool, ("max", "vote"))):
            if value not in known:
                raise VistokError(f"{name} is '{value}': choose '{known[0]}' or '{known[1]}'.")
        if self.correction is not None and self.correction <= self.start:
            raise VistokError(f"correction is {self.correction}: name a layer behind start, which is {self.start}.")

    def prepare(self, model: nn.Module) -> None:
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        for name, layer in (("start", self.start), ("correction", self.correction)):
            if layer is not None and layer >= layers:
                raise VistokError(f"{name} is {layer}, but the model has layers 0 to {layers - 1}: name one of them.")
        if self.correction is None:  # 13 of 32 layers as published
            self.correction = max(self.start + 1, round(layers * 13 / 32))

    def reset(self) -> None:
        self.chosen = self._seen = None

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        keys, values = step.write(layer, k, v)
        if not step.decoding or layer < self.start:
            out = step.dense(layer, q, keys, values, scale)
        elif layer in (self.start, self.correction):
            out = self._choose(step, q, keys, values, scale)
        else:
            rows = self.chosen.shape[-1] * self.chosen.shape[1] / keys.shape[1]
            step.count(rows, rows)
            out = gathered_attention(q, keys, values, self.chosen, self._seen, scale=scale)
        step.advance()
        return out

    def _choose(self, step: Step, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Full attention, whose scores choose the rows."""
        batch, _, new, dim = q.shape
        kv_heads, rows = k.shape[1:3]
        step.count(rows, rows)
        visible = step.visible
        grouped = q.unflatten(1, (kv_heads, -1)).flatten(2, 3)  # [B, Hkv, G * T, D]
        scores = (k @ (grouped * (dim**-0.5 if scale is None else scale)).mT).mT.contiguous()
        scores = scores.float().unflatten(2, (-1, new))
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
        weights = scores.softmax(-1)
        ranks = scores if self.pool == "max" else weights
        over = (3,) if self.heads == "query" else (2, 3)
        ranks = (ranks.amax(over) if self.pool == "max" else ranks.sum(over)).flatten(1, -2)  # [B, Hs, S]
        forced = 0
        if visible is not None:  # rows of the draft that only some of its tokens see are read besides
            common = visible.all(1)
            partly = visible.any(1) & ~common
            forced = int(partly.sum(-1).max())
            ranks = ranks.masked_fill(~common[:, None], -torch.inf).masked_fill(partly[:, None], torch.inf)
        self.chosen = ranks.topk(min(self.top_k + forced, rows), sorted=False).indices
        self._seen = None
        if visible is not None:
            wide = visible[:, None].expand(batch, self.chosen.shape[1], -1, -1)
            self._seen = wide.gather(3, self.chosen[:, :, None].expand(-1, -1, new, -1))
        out = weights.to(v.dtype).flatten(2, 3) @ v
        return out.unflatten(2, (-1, new)).flatten(1, 2)
