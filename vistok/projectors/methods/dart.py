"""DART (arXiv 2502.11494): inside the language model, drop the visual tokens that are like a few pivots.

Pivots are the tokens of the picture, and of the text behind it, whose keys in layer L-1 have the largest L1 norm. Each
pivot in turn takes the tokens that are least like it, by the states that enter layer L; the picture's pivots stay as
well. No attention weights are read. Differs from the release: pivots are visited by falling norm, the picture's first,
where the release follows the order of a hash table; the budget is met, where the release exceeds it by a few; batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import LayerCompressor, LayerView, check_keep


def largest_keys(keys: Tensor, among: Tensor, count: int) -> Tensor:
    """The tokens whose keys have the largest L1 norm.

    Args:
        keys: of one prompt, [Hkv, S, d].
        among: which tokens, bool [S].
        count: how many; all of them where they are fewer.

    Returns:
        Columns by falling norm, int64 [count].
    """
    norms = keys.float().abs().sum((0, 2)).masked_fill(~among, -1.0)
    return norms.topk(min(count, int(among.sum()))).indices


def spread_out(states: Tensor, pivots: Tensor, free: Tensor, takes: list[int]) -> Tensor:
    """What each pivot in turn takes of the free tokens: those least like it.

    Args:
        states: of one prompt, [S, D].
        pivots: columns, int64 [P].
        free: bool [S].
        takes: number that each pivot takes.

    Returns:
        What was taken, bool [S].
    """
    unit = F.normalize(states.float(), dim=-1)
    taken, free = torch.zeros_like(free), free.clone()
    for pivot, count in zip(pivots.tolist(), takes, strict=True):
        likeness = (unit @ unit[pivot]).masked_fill(~free, torch.inf)
        best = likeness.topk(min(count, int(free.sum())), largest=False).indices
        taken[best], free[best] = True, False
    return taken


class Dart(LayerCompressor):
    """Drop the visual tokens that are like the pivots.

    Args:
        keep: visual tokens of a prompt that stay (int), or their share (float).
        layer: L, the first layer that sees fewer; 2, or the first that the model allows, if None.
        image_pivots, text_pivots: how many of each; the picture's count as kept.
    """

    name = "dart"

    def __init__(
        self, keep: int | float = 0.25, layer: int | None = None, image_pivots: int = 4, text_pivots: int = 4
    ) -> None:
        self.keep = check_keep(keep)
        if (layer is not None and layer < 1) or image_pivots < 1 or text_pivots < 0:
            raise VistokError(
                "dart needs a layer from 1, at least one pivot of the picture, and none or more of the text."
            )
        self.layer = layer
        self.image_pivots, self.text_pivots = image_pivots, text_pivots

    def layers(self, total: int, earliest: int) -> tuple[int, ...]:
        layer = max(2, earliest) if self.layer is None else self.layer
        if not earliest <= layer < total:
            raise VistokError(f"layer {layer} of {total}: give dart a layer from {earliest} to {total - 1}.")
        return (layer,)

    def select(self, view: LayerView) -> Tensor:
        rows = zip(view.keys(), view.norm(view.states), view.visual, view.present, strict=True)
        return torch.stack([self._row(*row) for row in rows])

    def _row(self, keys: Tensor, states: Tensor, visual: Tensor, present: Tensor) -> Tensor:
        total = int(visual.sum())
        count = min(total, self.keep if isinstance(self.keep, int) else max(1, round(self.keep * total)))
        if count == total:
            return visual
        columns = torch.arange(len(visual), device=visual.device)
        behind = present & (columns > int(columns[visual].max()))
        mine = largest_keys(keys, visual, min(self.image_pivots, count))
        pivots = torch.cat([mine, largest_keys(keys, behind, self.text_pivots)])
        stays = torch.zeros_like(visual)
        stays[mine] = True
        share, rest = divmod(count - len(mine), len(pivots))
        takes = [share + (i < rest) for i in range(len(pivots))]
        return stays | spread_out(states, pivots, visual & ~stays, takes)
