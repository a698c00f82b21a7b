"""Which placeholders of a picture stay, and what fills them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.families.plan import NEWLINE, Plan
from vistok.projectors.interface import LEADING, TRAILING, ImageTokens, Kept

ROW_END = -3  # in what was packed


class Packed(NamedTuple):
    """What the language model gets for a picture.

    Attributes:
        features: [n, D].
        offsets: placeholder of the picture that each token takes the place of, 0..T-1, ascending, float64 [n] on the
            CPU; half a place before the first or after the last where it stands for none.
        index: token that each is, as in a plan; ``LEADING`` or ``TRAILING`` for none, ``ROW_END`` for a row end.
        levels: what is added to them in later layers, [n, D] each (see ``ImageTokens.levels``).
    """

    features: Tensor
    offsets: Tensor
    index: Tensor
    levels: list[Tensor]


def _kept_newlines(plan: Plan, kept: Tensor, policy: str) -> Tensor:
    """Placeholders of the row ends that stay: those of rows with a kept token, all, or none; int64 [n].

    A picture that is kept whole keeps its row ends whatever the policy.
    """
    ends = plan.tokens == NEWLINE
    if len(kept) == int((~ends).sum()):
        return ends.nonzero().squeeze(1)
    if policy == "none":
        ends = torch.zeros_like(ends)
    elif policy == "rows":
        survivors = torch.zeros(int(plan.row.max()) + 2, dtype=torch.bool)  # the last entry takes row -1
        survivors[plan.row[kept]] = True
        ends = ends & survivors[plan.row]
    return ends.nonzero().squeeze(1)


def check_kept(name: str, image: ImageTokens, kept: Any, width: int) -> None:
    """Refuses what is no choice among the tokens of a picture, nor finished features in their place.

    Args:
        name: of the compressor.
        image: the picture.
        kept: what the compressor gave.
        width: of the features that the language model reads.

    Raises:
        VistokError: e.g. a view without a choice, or a token that the picture does not have.
    """
    if isinstance(kept, Tensor):
        if kept.ndim != 2 or kept.shape[1] != width:
            raise VistokError(f"{name} gives features {list(kept.shape)}, but the language model reads [n, {width}].")
        return
    views, tokens, channels = image.hidden.shape
    if not isinstance(kept, list) or len(kept) != views or not all(isinstance(view, Kept) for view in kept):
        each = "its one view" if views == 1 else f"each of {views} views"
        raise VistokError(f"{name} must give a list with a Kept for {each} of a picture, or features [n, {width}].")
    for view in kept:
        if not isinstance(view.index, Tensor) or view.index.dtype != torch.int64 or view.index.ndim != 1:
            raise VistokError(f"{name} must name the tokens that it keeps by their indices, int64 [n].")
        index = view.index.cpu()
        if bool(((index < TRAILING) | (index >= tokens)).any()):
            raise VistokError(f"{name} keeps tokens that are not there: a view has the tokens 0 to {tokens - 1}.")
        if view.tokens is None and (bool((index < 0).any()) or len(index.unique()) < len(index)):
            raise VistokError(f"{name} keeps a token twice, or one without a place, and gives no features for it.")
        if view.tokens is not None and view.tokens.shape != (len(index), channels):
            raise VistokError(f"{name} must give [{len(index)}, {channels}] for the tokens of a view that it keeps.")


def pack(image: ImageTokens, plan: Plan, kept: list[Kept] | Tensor, newlines: str) -> Packed:
    """Projects the kept tokens and puts them in the order of the plan.

    Args:
        image: the picture.
        plan: its placeholders.
        kept: of each view; or finished features [n, D], which are spread over the plan.
        newlines: policy of row ends.

    Raises:
        VistokError: a compressor kept a token that shows no picture, or levels are missing.
    """
    if isinstance(kept, Tensor):
        if image.levels:
            raise VistokError("finished features lack the levels that this model adds in later layers.")
        spread = torch.linspace(0, len(plan.tokens) - 1, len(kept), dtype=torch.float64)
        return Packed(kept, spread, torch.full((len(kept),), TRAILING), [])
    width = image.hidden.shape[1]
    index = torch.cat([torch.where(view.index >= 0, view.index + v * width, view.index) for v, view in enumerate(kept)])
    index = index.cpu()
    place = torch.full((image.hidden.shape[0] * width,), -1, dtype=torch.int64)
    filled = (plan.tokens != NEWLINE).nonzero().squeeze(1)
    place[plan.tokens[filled]] = filled
    offsets = torch.where(index >= 0, place[index.clamp(min=0)], index).double()
    if bool((offsets[index >= 0] < 0).any()):
        raise VistokError("a compressor kept a token that only shows padding: choose among image.valid.")
    offsets[index == LEADING] = -0.5
    offsets[index == TRAILING] = len(plan.tokens) - 0.5
    ends = _kept_newlines(plan, offsets[index >= 0].long(), newlines)
    offsets = torch.cat([offsets, ends.double()])
    index = torch.cat([index, torch.full_like(ends, ROW_END)])
    order = offsets.argsort(stable=True)
    features = image.project_kept(kept)
    if len(ends):
        features = torch.cat([features, image.newline.to(features).expand(len(ends), -1)])
    there = order.to(features.device)
    levels = [level[there] for level in image.kept_levels(kept)]
    return Packed(features[there], offsets[order], index[order], levels)
