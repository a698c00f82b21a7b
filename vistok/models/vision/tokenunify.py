"""TokenUnify's tokens (arXiv 2405.16847), raw patches of a picture or a volume in raster order, and a network for them.

There is no codebook: predictions are pixel values. The published network is a U-Net of Mamba layers for microscopy;
what its pre-training predicts does not depend on that, and here a transformer reads pictures or volumes of any number
of dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.blocks import Block
from vistok.zoo.pretrained import Pretrained

BOTTLENECK = 12  # numbers of a token that the head of the next one reads, as many as the reference's channels


def _grid(shape: Sequence[int], size: Sequence[int]) -> list[int]:
    if len(shape) < len(size) or any(side % part for side, part in zip(shape[-len(size) :], size, strict=True)):
        raise VistokError(f"{list(shape)} does not split into patches of {list(size)}: crop it to a multiple.")
    return [side // part for side, part in zip(shape[-len(size) :], size, strict=True)]


def patches(values: Tensor, size: Sequence[int]) -> Tensor:
    """Splits the last dimensions into patches.

    Args:
        values: [..., *sides].
        size: of a patch, for as many last dimensions: (h, w) or (d, h, w).

    Returns:
        [..., N, numbers of a patch], in raster order, depth first.

    Raises:
        VistokError: a side is no multiple of the patch's.
    """
    lead, grid = values.shape[: values.ndim - len(size)], _grid(values.shape, size)
    split = values.reshape(*lead, *(n for pair in zip(grid, size, strict=True) for n in pair))
    first, count = len(lead), len(size)
    order = [*range(first), *(first + 2 * i for i in range(count)), *(first + 2 * i + 1 for i in range(count))]
    return split.permute(order).reshape(*lead, math.prod(grid), math.prod(size))


def from_patches(tokens: Tensor, shape: Sequence[int], size: Sequence[int]) -> Tensor:
    """The inverse of ``patches``: [..., N, numbers of a patch] to [*shape]."""
    grid, count = _grid(shape, size), len(size)
    lead = list(shape[: len(shape) - count])
    split, first = tokens.reshape(*lead, *grid, *size), len(lead)
    order = [
        *range(first),
        *(first + each for pair in zip(range(count), range(count, 2 * count), strict=True) for each in pair),
    ]
    return split.permute(order).reshape(*shape)


def keep_first(tokens: Tensor, count: int | Tensor, fill: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The input and the target of next-token prediction.

    Args:
        tokens: [..., N, D].
        count: how many first tokens are kept, 1 to N - 1; int64 [B] gives every row of [B, N, D] its own number.
        fill: what the others become, of the tokens' shape; zeros if None.

    Returns:
        Tokens of which the first are kept, and the one that follows, [..., D].

    Raises:
        VistokError: nothing would be kept, or nothing be left to predict.
    """
    total = tokens.shape[-2]
    kept = torch.as_tensor(count, device=tokens.device)
    if int(kept.min()) < 1 or int(kept.max()) >= total:
        raise VistokError(f"1 to {total - 1} of {total} tokens can be kept before the next one, got {count}.")
    shown = torch.arange(total, device=tokens.device) < kept[..., None]
    masked = torch.where(shown[..., None], tokens, torch.zeros_like(tokens) if fill is None else fill)
    if kept.ndim == 0:
        return masked, tokens[..., int(kept), :]
    return masked, tokens[torch.arange(len(tokens), device=tokens.device), kept]


def hide_random(tokens: Tensor, share: Tensor, order: Tensor, fill: Tensor | None = None) -> Tensor:
    """The input of random-token prediction: a share of each row's tokens is hidden.

    Args:
        tokens: [B, N, D].
        share: of each row, [B], in [0, 1].
        order: uniform numbers [B, N]; a row's smallest are hidden.
        fill: what hidden tokens become; zeros if None.
    """
    count = (share * tokens.shape[1]).long()
    hidden = order.argsort(1).argsort(1) < count[:, None]
    return torch.where(hidden[..., None], torch.zeros_like(tokens) if fill is None else fill, tokens)


@dataclass(frozen=True)
class TokenUnifyConfig:
    """Shape of the network.

    Attributes:
        patch: sides of a patch: (h, w), or (d, h, w) for volumes.
        grid: patches along each side.
        channels: numbers of a pixel: 3, or 1 for grey pictures and volumes.
        width, layers, heads: of the transformer.
    """

    patch: tuple[int, ...] = (4, 4)
    grid: tuple[int, ...] = (16, 16)
    channels: int = 3
    width: int = 192
    layers: int = 6
    heads: int = 3

    @property
    def tokens(self) -> int:
        """Patches of a picture."""
        return math.prod(self.grid)

    @property
    def numbers(self) -> int:
        """Numbers of a token."""
        return self.channels * math.prod(self.patch)


class TokenUnify(Pretrained, nn.Module):
    """Tokens [B, N, numbers] in [0, 1], partly hidden, to those of the whole picture and to the one that comes next."""

    config_class = TokenUnifyConfig
    family = "tokenunify"

    def __init__(self, config: TokenUnifyConfig | None = None):
        super().__init__()
        self.config = config = config or TokenUnifyConfig()
        width = config.width
        self.embed = nn.Linear(config.numbers, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.tokens, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.whole = nn.Linear(width, config.numbers)
        self.narrow = nn.Linear(width, BOTTLENECK)
        self.next = nn.Linear(config.tokens * BOTTLENECK, config.numbers)

    def split(self, images: Tensor) -> Tensor:
        """Pictures [B, C, H, W] or volumes [B, C, D, H, W] in [0, 1] to tokens [B, N, numbers].

        Raises:
            VistokError: another number of channels, or of patches.
        """
        config = self.config
        expected = [config.channels, *(n * p for n, p in zip(config.grid, config.patch, strict=True))]
        if list(images.shape[1:]) != expected:
            raise VistokError(
                f"this network reads pictures [B, {', '.join(map(str, expected))}], got {list(images.shape)}."
            )
        return patches(images, config.patch).transpose(1, 2).flatten(2)

    def features(self, tokens: Tensor) -> Tensor:
        """Features of tokens, [B, N, width]."""
        x = self.embed(tokens * 2 - 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def predict(self, features: Tensor) -> Tensor:
        """The whole picture's tokens, in [0, 1]."""
        return self.whole(features).sigmoid()

    def predict_next(self, features: Tensor) -> Tensor:
        """The token that comes next, [B, numbers] in [0, 1]."""
        return self.next(self.narrow(features).relu().flatten(1)).sigmoid()
