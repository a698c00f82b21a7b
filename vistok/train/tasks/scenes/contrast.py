"""Condition contrastive alignment (arXiv 2410.09347) for captions: the likelihood of a picture tells which of two
captions is its own.

The other caption is the same one with the colours or the places of two groups exchanged. Where the paper contrasts
with a frozen reference model, this asks for the posterior of two captions that are equally likely beforehand: a proper
score, so the true law is its best as it is that of the cross-entropy, but all of it is about what is bound to what,
which is next to nothing of a picture's nats.

Only the tokens count that paint the first half of an object: the rows in which the first one begins, or, where tokens
lie in lattices, half of the lattices. There the picture still agrees with both captions. Behind them it contradicts the
other one, and a model can tell the two apart without drawing any better, by spreading its probabilities wherever it
notices the contradiction; given whole pictures, it does.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes.language import Statement
from vistok.train.tasks.scenes.captions import OPPOSITE

ROWS = 3  # of tokens: half of a large object, all of a small one


def untrue(statement: Statement, variant: int = 0) -> Statement | None:
    """Returns a statement that is false of the scene: colours or places of its first two groups are exchanged.

    Args:
        statement: a true one.
        variant: draws which of the two is exchanged, if both can be.

    Returns:
        None if the statement tells neither of two groups, or if both have one colour.
    """
    changes = []
    if statement.where is not None:
        changes.append({"where": OPPOSITE[statement.where]})
    if statement.with_colour and len({group.colour for group in statement.groups[:2]}) == 2:
        first, second, *others = statement.groups
        swapped = replace(first, colour=second.colour), replace(second, colour=first.colour)
        changes.append({"groups": (*swapped, *others)})
    if not changes:
        return None
    return replace(statement, **random.Random(f"{statement.text} {variant}").choice(changes))


def decisive(begins: Tensor, count: int, grid: int, raster: bool = True) -> Tensor:
    """Returns the tokens from a picture's first object to the end of the ``ROWS`` rows it begins, or, of tokens that
    lie in lattices, those among the first half of the grid; bool [B, count].

    Args:
        begins: first token of each object, -1 where there is no object, [B, 4].
        count: tokens of a picture.
        grid: side of the grid of their cells.
        raster: they come row by row.
    """
    tokens = torch.arange(count, device=begins.device)
    first = torch.where(begins < 0, count, begins.long()).amin(1, keepdim=True)
    end = (first // grid + ROWS) * grid if raster else grid**2 // 2
    return (tokens >= first) & (tokens < end)


def contrast_loss(own: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """Returns the cross-entropy of which of two captions a picture has, in nats a picture; 0 if there is none to tell.

    Args:
        own: log-likelihoods of pictures given their captions, [B].
        other: given the other captions, [B].
        counts: which pictures count, bool [B].
    """
    losses = F.softplus(other - own)
    return losses.where(counts, 0).sum() / counts.sum().clamp(min=1)
