"""PVC (arXiv 2412.09613): one compressor for pictures and videos, 64 tokens a frame; a picture is a static video.

Later frames of the vision tower look back at the same place in earlier frames, so each of the four copies of a picture
can say something new; a pixel shuffle conditioned on time then packs 4x4 patches into one token.

The published model code ships only with its checkpoint and was not available: the causal temporal attention over equal
places, its position in the last layers, the AdaLN conditioning on a sinusoidal time embedding and the 4x4 shuffle
follow the paper; number of layers, zero gates and names of parameters are ours. No compatibility with the checkpoint
is claimed. These are building blocks of a tower that is trained with them, not a plug-in for a finished model.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError

STATIC_FRAMES = 4  # copies of a picture


def pixel_shuffle(x: Tensor, scale: float) -> Tensor:
    """Space to channels: a block of 1/scale x 1/scale places becomes one, in row-major order with columns fastest.

    Args:
        x: [..., H, W, C].
        scale: 0.5 for 2x2 blocks, 0.25 for 4x4.

    Returns:
        [..., H*scale, W*scale, C/scale^2].
    """
    block = round(1 / scale)
    height, width = x.shape[-3:-1]
    if height % block or width % block:
        raise VistokError(f"a {height}x{width} grid does not divide into blocks of {block}x{block}.")
    x = x.unflatten(-3, (-1, block)).unflatten(-2, (-1, block))  # [..., h, b, w, b, C]
    return x.transpose(-4, -3).flatten(-3)


def as_static_video(pictures: Tensor) -> Tensor:
    """Returns pictures [B, C, H, W] as videos [B, STATIC_FRAMES, C, H, W] that stand still."""
    return pictures.unsqueeze(1).expand(-1, STATIC_FRAMES, -1, -1, -1)


class TimeEmbedding(nn.Module):
    """Relative timestamps to vectors: sinusoids, then two layers.

    Args:
        width: of the vectors.
        frequencies: of the sinusoids, sines and cosines together.
    """

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """Returns the vectors [..., width] of times [...] in 0..1."""
        count = self.mlp[0].in_features // 2
        steps = torch.arange(count, dtype=torch.float32, device=time.device) / count  # float32 whatever the weights are
        angles = time[..., None] * 1000.0 * torch.exp(-math.log(10000.0) * steps)  # diffusion's range of timesteps
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class AdaLN(nn.Module):
    """LayerNorm with scale, shift and a residual gate from the time; at start a plain LayerNorm with a fixed gate."""

    def __init__(self, width: int, time_width: int, gate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(time_width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.constant_(self.modulation.bias[2 * width :], gate)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, N, C], time [B, T, E] -> the normalised x, and the gate [B, T, 1, C]."""
        shift, scale, gate = self.modulation(F.silu(time)).unsqueeze(2).chunk(3, -1)
        return self.norm(x) * (1 + scale) + shift, gate


class Attention(nn.Module):
    """Multi-head attention over the second-last axis.

    Args:
        width, heads: shape.
        causal: a position sees itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [..., S, C], and keys and values of earlier positions [..., H, P, d]; returns both, grown by x."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        mask = None
        if self.causal:
            keys, queries = k.shape[-2], q.shape[-2]
            mask = torch.ones(queries, keys, dtype=torch.bool, device=x.device).tril(keys - queries)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(-3, -2).flatten(-2)), (k, v)


class ProgressiveLayer(nn.Module):
    """A layer of the tower: attention over earlier frames at the same place, attention within the frame, MLP.

    Args:
        width, heads: shape of the tower.
        time_width: of the time vectors.
        temporal: whether the layer looks at earlier frames; without, it is a plain ViT layer.
        chunk: places whose temporal attention runs at a time.
    """

    def __init__(self, width: int, heads: int, time_width: int, temporal: bool, chunk: int = 256) -> None:
        super().__init__()
        self.chunk = chunk
        self.temporal = Attention(width, heads, causal=True) if temporal else None
        self.temporal_norm = AdaLN(width, time_width, gate=0.0) if temporal else None
        self.norm1 = AdaLN(width, time_width, gate=1.0)
        self.attention = Attention(width, heads)
        self.norm2 = AdaLN(width, time_width, gate=1.0)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Tensor, time: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """x [B, T, N, C] of T new frames, time [B, T, E]; past and returned keys and values [B, N, H, frames, d]."""
        if self.temporal is not None:
            h, gate = self.temporal_norm(x, time)
            h, past = self._look_back(h.transpose(1, 2), past)
            x = x + gate * h.transpose(1, 2)
        h, gate = self.norm1(x, time)
        x = x + gate * self.attention(h)[0]
        h, gate = self.norm2(x, time)
        return x + gate * self.mlp(h), past

    def _look_back(self, h: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Temporal attention of [B, N, T, C], a chunk of places at a time: N sequences of T frames would be large."""
        outputs, keys, values = [], [], []
        for start in range(0, h.shape[1], self.chunk):
            places = slice(start, start + self.chunk)
            earlier = None if past is None else (past[0][:, places], past[1][:, places])
            y, (k, v) = self.temporal(h[:, places], earlier)
            outputs.append(y)
            keys.append(k)
            values.append(v)
        return torch.cat(outputs, 1), (torch.cat(keys, 1), torch.cat(values, 1))


class ProgressiveEncoder(nn.Module):
    """Vision tower that encodes frames one after the other, each in view of those before it.

    Args:
        image_size, patch_size: of square frames.
        width, heads, layers: shape; 1024, 16, 24 in the paper.
        temporal_layers: how many of the last layers look at earlier frames; 12 in ours.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, heads: int, layers: int, temporal_layers: int
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise VistokError(f"patches of {patch_size} do not tile frames of {image_size}.")
        self.grid = image_size // patch_size
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, self.grid**2 + 1, width) * 0.02)
        self.time_embed = TimeEmbedding(width)
        first = layers - temporal_layers
        self.layers = nn.ModuleList(ProgressiveLayer(width, heads, width, i >= first) for i in range(layers))

    def forward(
        self, frames: Tensor, time: Tensor, past: list[tuple[Tensor, Tensor] | None] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """Encode frames that follow those in ``past``.

        Args:
            frames: [B, T, 3, H, W].
            time: relative timestamps in 0..1, [B, T].
            past: what the call on the earlier frames returned.

        Returns:
            Patches [B, T, N, C] without CLS, and the state for the frames that follow.
        """
        batch, count = frames.shape[:2]
        x = self.patch_embed(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.position
        x = x.unflatten(0, (batch, count))
        embedded = self.time_embed(time)
        state = []
        for i, layer in enumerate(self.layers):
            x, seen = layer(x, embedded, None if past is None else past[i])
            state.append(seen)
        return x[:, :, 1:], state


class ProgressiveConnector(nn.Module):
    """Adaptive compression: 4x4 patches into one token, normalised by the time, then projected.

    Args:
        width: of the tower.
        hidden_size: of the language model.
        scale: of the pixel shuffle.
    """

    def __init__(self, width: int, hidden_size: int, scale: float = 0.25) -> None:
        super().__init__()
        self.scale = scale
        packed = width * round(1 / scale) ** 2
        self.norm = nn.LayerNorm(packed)
        self.modulation = nn.Linear(width, 2 * packed)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.mlp = nn.Sequential(nn.Linear(packed, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Patches [B, T, N, C] and embedded time [B, T, C] -> tokens ordered by time, [B, T*N*scale^2, D]."""
        side = math.isqrt(x.shape[2])
        packed = pixel_shuffle(x.unflatten(2, (side, side)), self.scale).flatten(2, 3)
        shift, scale = self.modulation(F.silu(time)).unsqueeze(2).chunk(2, -1)
        return self.mlp(self.norm(packed) * (1 + scale) + shift).flatten(1, 2)


class PvcEncoder(nn.Module):
    """Tower and connector together: videos or pictures to language-model tokens.

    Args:
        encoder: the tower.
        hidden_size: of the language model.
        scale: of the pixel shuffle.
    """

    def __init__(self, encoder: ProgressiveEncoder, hidden_size: int, scale: float = 0.25) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = ProgressiveConnector(encoder.position.shape[-1], hidden_size, scale)

    def patches(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """A video [B, T, 3, H, W], or pictures [B, 3, H, W] as static videos, to patches [B, T, N, C] and times."""
        if frames.ndim == 4:
            frames = as_static_video(frames)
        count = frames.shape[1]
        time = (torch.arange(count, device=frames.device) / count).expand(len(frames), -1)
        return self.encoder(frames, time)[0], time

    def forward(self, frames: Tensor) -> Tensor:
        """Frames as :meth:`patches` takes them to tokens [B, T*N*scale^2, D]."""
        patches, time = self.patches(frames)
        return self.connector(patches, self.encoder.time_embed(time))
