"""Several questions about a picture in one sequence, and pictures of which some tokens are left out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes.vqa import SLOT


def packed_mask(present: Tensor, count: int, slot: int = SLOT) -> tuple[Tensor, Tensor]:
    """Returns mask and positions of ``count`` questions that share a prefix, some of whose tokens may be left out.

    Args:
        present: tokens of the prefix that are there, bool [B, P].
        count: questions.
        slot: tokens of each.

    Returns:
        bool [B, 1, S, S], True where a query may look; int64 [B, S], numbered as if the others were cut out.
    """
    prefix = present.shape[1]
    place = torch.arange(prefix + count * slot, device=present.device)
    block = torch.where(place < prefix, -1, (place - prefix) // slot)
    allowed = (place[:, None] >= place) & ((block == -1) | (block[:, None] == block))
    there = F.pad(present, (0, count * slot), value=True)
    allowed = allowed & (there[:, None] | torch.eye(len(place), dtype=torch.bool, device=place.device))
    inside = present.long().cumsum(1) - 1
    behind = present.sum(1, keepdim=True) + (place[prefix:] - prefix) % slot
    return allowed[:, None], torch.cat([inside.clamp(min=0), behind], 1)


def middle_and_last(language: Any, embeds: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a language model's states behind half of its layers, and behind all and its norm, [B, S, D] each.

    Args:
        language: of transformers, without its head.
        embeds: what it reads, [B, S, D].
        mask: as the model takes it, [B, 1, S, S].
        positions: int64 [B, S].
    """
    out = language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, output_hidden_states=True
    )
    return out.hidden_states[len(out.hidden_states) // 2], out.last_hidden_state


def added(allowed: Tensor) -> Tensor:
    """Returns a mask to add to scores of attention: 0 where a query may look, else the least number there is.

    Transformers' eager attention adds whatever it is given: a bool mask would be zeros and ones, and hide nothing.
    """
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.float32).min)


def thinned(shown: Tensor, seed: int) -> Tensor:
    """Returns tokens that stay of each picture: all of 40 % of pictures, a half, a quarter or an eighth of the others'.

    Which ones is drawn with a leaning to objects, to background, or to none, that differs from picture to picture: a
    language model that has seen any mixture cannot count by how many patches show a thing.

    Args:
        shown: whether a token shows an object, bool [B, N].
        seed: of the draw.

    Returns:
        bool [B, N].
    """
    generator = torch.Generator().manual_seed(seed)
    batch, tokens = shown.shape
    shares = torch.tensor([1.0, 1.0, 0.5, 0.25, 0.125])[torch.randint(5, (batch,), generator=generator)]
    leaning = torch.tensor([-0.3, 0.0, 0.4, 1.0])[torch.randint(4, (batch,), generator=generator)]
    scores = torch.rand(batch, tokens, generator=generator) + leaning[:, None] * shown
    rank = scores.argsort(1, descending=True).argsort(1)
    return rank < (shares * tokens)[:, None]
