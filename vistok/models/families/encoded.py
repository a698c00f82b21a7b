"""Families whose pictures are taken as the model's own ``get_image_features`` returns them, with attention beside.

Tokens are thinned as the language model gets them, so their projector is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.attention import LayerAttention
from vistok.models.families.capture import Seen, attention_layers, check_layers, seen_by
from vistok.models.families.family import Ask, Family, Picture, square
from vistok.models.families.plan import single_view_plan
from vistok.models.families.tokens import ImageTokens


class Tile(NamedTuple):
    """Tokens of a picture or a tile [N, D], further levels behind them in the channels, and its grid of tokens."""

    tokens: Tensor
    grid: tuple[int, int]
    levels: int = 0


class EncodedFamily(Family):
    """Base: a family says how it encodes, and where the attention of a tile is."""

    def modules(self, base: nn.Module) -> list[nn.Module]:
        """Returns the attention modules of the vision tower."""
        return attention_layers(base.vision_tower)

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        """Runs the tower and the projector and returns the tiles of all pictures."""
        raise NotImplementedError

    def attention(self, base: nn.Module, seen: Seen, tile: int, tiles: list[Tile], inputs: dict[str, Any]) -> Any:
        """Returns the :class:`LayerAttention` of a tile, from what entered a layer in the row of its number."""
        q, k = self.row(seen, tile)
        return LayerAttention(q, k, seen.module.num_heads, False, block_pool(q.shape[1], tiles[tile].grid))

    @staticmethod
    def row(seen: Seen, tile: int) -> tuple[Tensor, Tensor]:
        """Returns queries and keys of one row of the tower's batch, [1, P, C] each."""
        return seen._replace(states=seen.states[tile : tile + 1]).queries_and_keys()

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        base = model.base_model
        modules = self.modules(base)
        needs = ask(len(modules) or 24)  # what a tower without attention is asked for as well is refused below
        if needs.states:
            raise VistokError(
                f"{model.config.model_type} has tokens that the tower's hidden states do not match: choose a method "
                "that reads none, such as vtc-cls or divprune."
            )
        check_layers(model.config.model_type, needs.attention, len(modules))
        layers = {layer: self.layer(base, layer) for layer in needs.attention}
        with seen_by(modules, tuple(layers.values())) as seen:
            tiles = self.tiles(base, inputs)
        for i, tile in enumerate(tiles):
            hidden = tile.tokens[None]
            read = {taken: self.attention(base, seen[taken], i, tiles, inputs) for taken in set(layers.values())}
            width = hidden.shape[-1] // (1 + tile.levels)
            image = ImageTokens(
                hidden=hidden,
                grid=tile.grid,
                project=partial(torch.narrow, dim=-1, start=0, length=width) if tile.levels else nn.Identity(),
                layers=len(modules),
                valid=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
                attention={layer: read[taken] for layer, taken in layers.items()},
                levels=tile.levels,
            )
            yield image, single_view_plan(hidden.shape[1])

    def layer(self, base: nn.Module, layer: int) -> int:
        """Returns the layer that is read where a method asks for this one."""
        return layer

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        return 1, 1


class SquareTiles(EncodedFamily):
    """Base of families whose pictures and tiles are squares of one size, in one tensor of features [V, N, D]."""

    features = "flat"

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        views = base.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        return [Tile(view, square(len(view))) for view in views]


def block_pool(patches: int, grid: tuple[int, int]) -> Any:
    """Returns what averages scores of patches over the blocks that tokens stand for; None if patches are tokens."""
    block = round((patches / (grid[0] * grid[1])) ** 0.5)
    return None if block == 1 else partial(_block_mean, grid, block)


def _block_mean(grid: tuple[int, int], block: int, scores: Tensor) -> Tensor:
    """[..., P] -> [..., N]."""
    rows, cols = grid
    return scores.unflatten(-1, (rows, block, cols, block)).mean((-3, -1)).flatten(-2)


def group_mean(size: int, scores: Tensor) -> Tensor:
    """Scores [..., P] of patches that lie together by token to [..., P / size]."""
    return scores.unflatten(-1, (-1, size)).mean(-1)
