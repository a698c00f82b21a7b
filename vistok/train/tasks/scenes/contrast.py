"""Condition contrastive alignment (arXiv 2410.09347) for captions: the likelihood of a picture tells which of two
captions is its own.

The other caption is the same one with the colours or the places of two groups exchanged. Where the paper contrasts
with a frozen reference model, this asks for the posterior of two captions that are equally likely beforehand: a proper
score, so the true law is its best as it is that of the cross-entropy, but all of it is about what is bound to what,
which is next to nothing of a picture's nats.

Only the rows count in which the first object begins. There the picture still agrees with both captions. Behind them it
contradicts the other one, and a model can tell the two apart without drawing any better, by spreading its
probabilities wherever it notices the contradiction; given whole pictures, it does.
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


def first_rows(begins: Tensor, grid: int) -> Tensor:
    """Returns the tokens from a picture's first object to the end of the ``ROWS`` rows it begins, bool [B, grid^2].

    Args:
        begins: first cell of each object, -1 where there is no object, [B, 4].
        grid: tokens in a row.
    """
    cells = torch.arange(grid**2, device=begins.device)
    first = torch.where(begins < 0, grid**2, begins.long()).amin(1, keepdim=True)
    return (cells >= first) & (cells // grid < first // grid + ROWS)


def contrast_loss(own: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """Returns the cross-entropy of which of two captions a picture has, in nats a picture; 0 if there is none to tell.

    Args:
        own: log-likelihoods of pictures given their captions, [B].
        other: given the other captions, [B].
        counts: which pictures count, bool [B].
    """
    losses = F.softplus(other - own)
    return losses.where(counts, 0).sum() / counts.sum().clamp(min=1)
