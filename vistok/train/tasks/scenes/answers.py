"""Answers to questions that share a picture: their loss, which of them are right, and their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes.vqa import IGNORE


class Asked(Protocol):
    """A question of a kind, such as ``counting``."""

    kind: str


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of what is answered, in nats a word.

    Args:
        logits: behind every token, [..., V].
        targets: the next tokens, int64 [...]; ``IGNORE`` where nothing is answered.
    """
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE)


def answered_right(logits: Tensor, targets: Tensor) -> list[list[bool]]:
    """Returns whether each of B rows of K answers is right word by word, where every word before is given.

    Args:
        logits: behind every token, [B, K, slot, V].
        targets: the next tokens, int64 [B, K, slot], on the same device; ``IGNORE`` where nothing is answered.
    """
    return ((logits.argmax(-1) == targets) | (targets == IGNORE)).all(-1).tolist()


def shares_right(asked: Sequence[Sequence[Asked]], hits: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Returns the share of right answers: ``exact_match`` of all, and ``exact_match_KIND`` of each kind.

    Args:
        asked: B rows of K questions.
        hits: whether each was answered right.
    """
    right: dict[str, list[bool]] = {}
    for row, hit in zip(asked, hits, strict=True):
        for question, ok in zip(row, hit, strict=True):
            right.setdefault(question.kind, []).append(ok)
    everything = [ok for found in right.values() for ok in found]
    return {"exact_match": sum(everything) / len(everything)} | {
        f"exact_match_{kind}": sum(found) / len(found) for kind, found in sorted(right.items())
    }
