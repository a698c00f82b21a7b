"""ENAT: masked codes by visible ones, which are encoded alone and re-used from step to step (Ni et al., arXiv
2411.06959).

Encoder blocks see visible codes only; decoder blocks let hidden codes read them. A step encodes only the codes that the
last step revealed, with what is known of the older ones as context. Parameter names are those of the published
``nnet_ema.pth``. Its ``prev_embedder`` computes nothing and is kept because the files have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.masked import MaskedConfig, MaskedFamily, MaskedTransformer, Mlp, attend, modulated
from vistok.models.modulation import modulation


@dataclass(frozen=True)
class ENATConfig(MaskedConfig):
    """Shape of an ENAT.

    Attributes:
        enc_depth, dec_depth: blocks of visible codes, and of hidden ones.
    """

    enc_depth: int = 14
    dec_depth: int = 2


PRESETS: dict[str, ENATConfig] = {
    "ENAT-L": ENATConfig(embed_dim=1024, num_heads=16, enc_depth=22, dec_depth=2),
    "ENAT-B": ENATConfig(embed_dim=768, num_heads=12, enc_depth=14, dec_depth=2),
}


class ReuseState(NamedTuple):
    """What a step leaves to the next.

    Attributes:
        features: of all codes, before the last norm, [B, L, E].
        visible: which codes were, bool [B, L].
    """

    features: Tensor
    visible: Tensor


class Attention(nn.Module):
    """Attention of codes over a context and themselves, which are projected apart."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.ModuleDict({"A": nn.Linear(width, 2 * width), "B": nn.Linear(width, 2 * width)})
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None, rope: Tensor | None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        kv = self.kv["B"](x) if context is None else torch.cat([self.kv["A"](context), self.kv["B"](x)], 1)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.proj(attend(q, k, v, None if rope is None else rope[:, -x.shape[1] :], rope))


class Block(nn.Module):
    """Transformer block modulated by the condition: updates codes, given a context that it leaves as it is."""

    def __init__(self, config: ENATConfig):
        super().__init__()
        width = config.embed_dim
        self.attn = Attention(width, config.num_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = modulation(config.embed_dim, 8, config.modulation_rank)

    def forward(self, x: Tensor, context: Tensor | None, condition: Tensor, rope: Tensor | None) -> Tensor:
        """The codes' features [B, n, E].

        Args:
            x: [B, n, E].
            context: [B, m, E], or None.
            condition: [B, 1, E].
            rope: of the context and the codes, [B, m + n, P, 2], if the network has a rotary encoding.
        """
        shift, scale, shift_context, scale_context, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            condition
        ).chunk(8, dim=-1)
        if context is not None:
            context = modulated(context, shift_context, scale_context)
        x = x + gate * self.attn(modulated(x, shift, scale), context, rope)
        return x + gate_mlp * self.mlp(modulated(x, shift_mlp, scale_mlp))


class Reuse(nn.Module):
    """Features of an earlier step to context: a residual MLP."""

    def __init__(self, config: ENATConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = Mlp(config.embed_dim, int(config.embed_dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class ENAT(MaskedTransformer):
    """The published class-conditional ENAT, or one that reads captions.

    Args:
        config: its shape.
    """

    family = "enat"
    config_class = ENATConfig
    presets = PRESETS
    dropped_keys = (r".*position_ids",)

    def __init__(self, config: ENATConfig):
        super().__init__(config)
        self.prev_embedder = Mlp(config.embed_dim, int(config.embed_dim * config.mlp_ratio))
        self.prev_proj = Reuse(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.enc_depth + config.dec_depth))
        self.initialise()

    def features(self, codes: Tensor, values: Tensor, state: ReuseState | None) -> tuple[Tensor, ReuseState]:
        """Returns features [B, L, E] of all codes, before the last norm, and the state of the next step.

        Args:
            codes: int64 [B, L]; all rows hide the same number.
            values: of the condition, see ``MaskedTransformer``.
            state: of the step before, whose visible codes are still visible and the same; None begins anew.
        """
        visible = codes != self.mask_id
        if state is not None and not bool(state.visible.any()):
            state = None
        h = self.x_embedder(codes)
        condition = self.y_embedder(values)[:, None]
        out = h
        context, fresh, known = None, visible, None
        if state is not None:
            known, fresh = _places(state.visible), visible & ~state.visible
            context = self.prev_proj(_at(state.features.detach(), known))
            out = _put(out, known, context)
        fresh, hidden = _places(fresh), _places(~visible)
        if fresh.shape[1]:
            new, rope = _at(h, fresh), self._rope(known, fresh)
            for block in self.blocks[: self.config.enc_depth]:
                new = block(new, context, condition, rope)
            out = _put(out, fresh, new)
        if hidden.shape[1]:
            unknown = _at(h, hidden)
            known = _places(visible) if hidden.shape[1] < codes.shape[1] else None
            context, rope = None if known is None else _at(out, known), self._rope(known, hidden)
            for block in self.blocks[self.config.enc_depth :]:
                unknown = block(unknown, context, condition, rope)
            out = _put(out, hidden, unknown)
        return out, ReuseState(out, visible)

    def _rope(self, context: Tensor | None, places: Tensor) -> Tensor | None:
        """The rotary table of codes at ``places`` [B, n, 1] and of those before them, [B, m + n, P, 2]."""
        if self.rope is None:
            return None
        return self.rope[(places if context is None else torch.cat([context, places], 1))[..., 0]]


def _places(chosen: Tensor) -> Tensor:
    """The chosen positions of each row, int64 [B, n, 1]."""
    counts = chosen.sum(1)
    if bool((counts != counts[0]).any()):
        raise VistokError("pictures of one batch must hide the same number of codes: draw them apart.")
    return chosen.nonzero()[:, 1].view(len(chosen), -1, 1)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Features [B, n, E] at these positions."""
    return x.take_along_dim(places, dim=1)


def _put(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Features [B, L, E] with others [B, n, E] at these positions."""
    return x.scatter(1, places.expand(-1, -1, x.shape[-1]), values.to(x.dtype))


FAMILY = MaskedFamily("enat", ENAT)
