"""Speculative sampling on one screen: what ``vistok.samplers.loop`` must do, for one sequence and without a cache.

A step drafts ``widths[0]`` candidates for the next token, ``widths[1]`` for the one behind it, and so on: widths of one
are a chain (arXiv 2211.17192, 2302.01318), larger ones a tree of independent candidates (SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Law = Callable[[Sequence[int]], np.ndarray]  # tokens so far to the probabilities [V] of the next one


def speculate(
    target: Law, draft: Law, widths: Sequence[int], length: int, random: np.random.Generator
) -> tuple[list[int], int]:
    """Draws a sequence that follows ``target``; returns its tokens and how many steps they took behind the first."""
    tokens, steps = [sample(target([]), random)], 0
    while len(tokens) < length:
        steps += 1
        p = target(tokens)
        for width in widths:
            accepted, p = verify(p, draft(tokens), width, random)
            if accepted is None:
                break
            tokens.append(accepted)
            p = target(tokens)
        tokens.append(sample(p, random))  # from the residual, or behind a draft that was accepted to its end
    return tokens[:length], steps


def verify(p: np.ndarray, q: np.ndarray, width: int, random: np.random.Generator) -> tuple[int | None, np.ndarray]:
    """Tests ``width`` drafts of q in turn; returns the accepted one, or None and the law that is left of p."""
    for _ in range(width):
        x = sample(q, random)
        if random.random() * q[x] < p[x]:
            return x, p
        p = np.maximum(p - q, 0)
        p = p / p.sum()
    return None, p


def sample(p: np.ndarray, random: np.random.Generator) -> int:
    """Draws from probabilities by their cumulative sums."""
    return min(int(np.searchsorted(np.cumsum(p), random.random(), side="right")), len(p) - 1)
