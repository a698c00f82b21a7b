"""Layers of FlexTok (Bachmann et al., arXiv 2502.13967). No norm has parameters; only the linear layers named have
biases.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.models.modulation import modulation
from vistok.ops import attention


def layer_norm(x: Tensor) -> Tensor:
    """Parameter-free layer norm in float32."""
    return F.layer_norm(x.float(), x.shape[-1:]).to(x.dtype)


def sincos_2d(width: int, height: int, columns: int) -> Tensor:
    """Table of 2D sine-cosine positions, [1, width, height, columns].

    The published code lays out a table that is not square in transposed order, and so does this; all published tables
    are square, where there is no difference.
    """
    place = torch.arange(height * columns)
    frequency = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    first, second = ((p[:, None] * frequency) for p in (place // height, place % height))
    table = torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], 1)
    return table.float().t().contiguous().view(1, width, height, columns)


def time_features(times: Tensor, size: int) -> Tensor:
    """Cosines and sines of times [B] in [0, 1], [B, size]; frequencies fall from 1000 with period 256."""
    half = size // 2
    frequency = 1000 * torch.exp(-math.log(256) * torch.arange(half, device=times.device) / half)
    angle = times.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class PatchEmbed(nn.Module):
    """Maps [B, C, H, W] to tokens [B, H/p * W/p, D]; inside a patch the order is row, column, channel."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.patch = patch
        self.patch_proj = nn.Linear(channels * patch**2, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_proj(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch))


class Projection(nn.Module):
    """A linear layer under the published name ``proj``."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Parameter(nn.Module):
    """One tensor under a published name."""

    def __init__(self, name: str, value: Tensor, trained: bool = True):
        super().__init__()
        setattr(self, name, nn.Parameter(value, requires_grad=trained))


class TimeEmbedder(nn.Module):
    """Times [B] to [B, D]."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        return self.mlp(time_features(times, self.features).to(self.mlp[0].weight.dtype))


class Attention(nn.Module):
    """Self-attention with normalised queries and keys; the scale is 8 / head_dim, which is 1/sqrt only at 64."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (rearrange(f(x), "b l (h d) -> b h l d", d=self.head_dim) for f in (self.wq, self.wk, self.wv))
        x = attention(layer_norm(q), layer_norm(k), v, mask=mask, scale=8 / self.head_dim)
        return self.proj(rearrange(x, "b h l d -> b l (h d)"))


class GatedMLP(nn.Module):
    """fc2(SiLU(fc1 x) * fc3 x), two thirds of four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        hidden = int(2 * 4 * width / 3)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.fc3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Block(nn.Module):
    """Pre-norm transformer block of the encoder."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.attn = Attention(width, head_dim)
        self.mlp = GatedMLP(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(layer_norm(x), mask)
        return x + self.mlp(layer_norm(x))


class ModulatedBlock(Block):
    """Block of the decoder: the time sets gate, shift and scale of both halves, apart for each group of tokens.

    Args:
        width: D.
        head_dim: width of a head.
        groups: sets of modulations: 2 for patches and registers, 1 for both alike.
    """

    def __init__(self, width: int, head_dim: int, groups: int):
        super().__init__(width, head_dim)
        self.groups = groups
        self.adaLN_modulation = modulation(width, 6 * groups)

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor, group: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: [B, L, D].
            mask: added to attention logits, broadcast to [B, heads, L, L].
            time: [B, D].
            group: of each token, int64 [L].
        """
        vectors = rearrange(self.adaLN_modulation(time), "b (g n d) -> n b g d", g=self.groups, n=6)
        attn_gate, mlp_gate, attn_shift, attn_scale, mlp_shift, mlp_scale = (v[:, group] for v in vectors)
        x = x + attn_gate * self.attn(layer_norm(x) * (1 + attn_scale) + attn_shift, mask)
        return x + mlp_gate * self.mlp(layer_norm(x) * (1 + mlp_scale) + mlp_shift)


class PatchHead(Projection):
    """Patch tokens [B, hw, D] to a map [B, C, h*p, w*p]; modulated by the time in some of the published networks."""

    def __init__(self, width: int, channels: int, patch: int, modulated: bool):
        super().__init__(width, channels * patch**2)
        self.patch = patch
        if modulated:
            self.adaLN_modulation = modulation(width, 2)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, time: Tensor, height: int) -> Tensor:
        x = layer_norm(x)
        if hasattr(self, "adaLN_modulation"):
            shift, scale = self.adaLN_modulation(time)[:, None].chunk(2, -1)
            x = x * (1 + scale) + shift
        return rearrange(self.proj(x), "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=self.patch, q=self.patch)
