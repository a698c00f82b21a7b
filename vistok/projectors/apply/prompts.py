"""What a model is fed for a shortened conversation: whatever has a column a token, and positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.models.families.family import Family
from vistok.projectors.apply.history import Turn
from vistok.projectors.apply.shrink import Shrunk, positions_of

_BY_TOKEN = {"labels": -100, "mm_token_type_ids": 0, "token_type_ids": 0}  # and what stands at padding


def pad_id(model: nn.Module) -> int:
    """Token that stands at padding."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return 0 if pad is None else pad


def columns_of(turn: Turn, shrunk: Shrunk, kwargs: dict[str, Any], pad: int) -> dict[str, Tensor]:
    """Token ids, types and labels of the whole conversation at the columns that are left of it, [B, S'] each."""
    found = {"input_ids": shrunk.take(turn.ids, pad)}
    for name, fill in _BY_TOKEN.items():
        if kwargs.get(name) is not None:
            missing = turn.ids.shape[1] - kwargs[name].shape[1]  # where only new ids were given
            found[name] = shrunk.take(nn.functional.pad(kwargs[name], (missing, 0), value=fill), fill)
    return found


def positions_in(
    model: nn.Module,
    family: Family,
    turn: Turn,
    shrunk: Shrunk,
    new: Shrunk,
    grids: Tensor | None,
    given: Tensor | None,
    original: bool,
) -> tuple[Tensor, Tensor | None]:
    """Positions of what is left of a conversation.

    Args:
        model, family: whose they are.
        turn: the conversation.
        shrunk: its columns.
        new: those of its new part, as columns of that.
        grids: of the new pictures, for models with three-dimensional positions.
        given: positions that the caller gave, [B, S].
        original: whether each token keeps its number.

    Returns:
        The offset of positions behind the conversation, [B, 1], and positions, [B, S'] or [4, B, S'] (those of text
        first); None where the model counts as is wanted.
    """
    offset = turn.history.offset
    if family.position_axes == 1:
        if given is None and not original:
            return offset, None
        whole = positions_of(turn.mask)
        if given is not None:
            whole[:, -given.shape[-1] :] = given
        return offset, shrunk.take(whole, 0)
    base, ids = model.base_model, turn.new_ids
    before = (turn.mask[:, : turn.start].sum(1, keepdim=True) + offset).long()
    if grids is None:
        axes = positions_of(turn.new_mask).expand(3, -1, -1)
    else:
        types = (ids == model.config.image_token_id).int()
        axes, delta = base.get_rope_index(ids, types, image_grid_thw=grids, attention_mask=turn.new_mask)
        offset = offset + delta
    base.rope_deltas = offset + turn.mask.sum(1, keepdim=True) - shrunk.mask.sum(1, keepdim=True)
    text = positions_of(shrunk.mask)
    axes = new.take(axes, 0) + before
    axes = nn.functional.pad(axes, (text.shape[1] - axes.shape[2], 0))  # those of the cache are not read again
    return offset, torch.cat([text[None], axes])


def hide_old_placeholders(by_token: dict[str, Tensor], token: int, new: int) -> None:
    """Let placeholders whose pictures are in the cache pass for text: transformers counts them against the new ones.

    Args:
        by_token: what has a column a token, [B, S'] each.
        token: id of a placeholder.
        new: number of columns that are new.
    """
    ids = by_token["input_ids"]
    old = torch.zeros_like(ids, dtype=torch.bool)
    old[:, : ids.shape[1] - new] = ids[:, : ids.shape[1] - new] == token
    first_text = ids.gather(1, (ids != token).int().argmax(1, keepdim=True))
    by_token["input_ids"] = torch.where(old, first_text, ids)
    if "mm_token_type_ids" in by_token:
        by_token["mm_token_type_ids"] = by_token["mm_token_type_ids"].masked_fill(old, 0)
