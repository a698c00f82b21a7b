"""MaskGIT's network (Chang et al., arXiv 2202.04200): one bidirectional stack over visible and hidden codes together.

It is ENAT's baseline: same embeddings, head and modulation, so that both differ only in who attends to whom and in what
is computed anew in each step. The original weights are JAX's and of another layout; the one here is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vistok.models.masked import MaskedConfig, MaskedFamily, MaskedTransformer, Mlp, attend, modulated
from vistok.models.modulation import modulation


@dataclass(frozen=True)
class MaskGITConfig(MaskedConfig):
    """Shape of a MaskGIT.

    Attributes:
        depth: blocks.
    """

    depth: int = 24


PRESETS: dict[str, MaskGITConfig] = {"MaskGIT": MaskGITConfig(embed_dim=768, num_heads=8)}


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attend(q, k, v, rope, rope))


class Block(nn.Module):
    """Transformer block modulated by the condition."""

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        width = config.embed_dim
        self.attn = Attention(width, config.num_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = modulation(config.embed_dim, 6, config.modulation_rank)

    def forward(self, x: Tensor, condition: Tensor, rope: Tensor | None) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate * self.attn(modulated(x, shift, scale), rope)
        return x + gate_mlp * self.mlp(modulated(x, shift_mlp, scale_mlp))


class MaskGIT(MaskedTransformer):
    """A MaskGIT, class- or text-conditional.

    Args:
        config: its shape.
    """

    family = "maskgit"
    config_class = MaskGITConfig
    presets = PRESETS

    def __init__(self, config: MaskGITConfig):
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.initialise()

    def features(self, codes: Tensor, values: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Returns features [B, L, E] of all codes, before the last norm; a step tells the next nothing."""
        h, condition = self.x_embedder(codes), self.y_embedder(values)[:, None]
        for block in self.blocks:
            h = block(h, condition, self.rope)
        return h, None


FAMILY = MaskedFamily("maskgit", MaskGIT)
