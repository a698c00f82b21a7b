"""Where 1D tokenizers start from when data is scarce: every latent token looks at a place of its own.

A latent token that begins as noise attends everywhere alike and tells the mean of the picture, and the painter, who
begins alike, learns to do without it. With the thousands of steps of a large training the symmetry breaks; here it is
broken at the start. Token i takes the position of the i-th place of a dithering order, in which any prefix is spread
evenly over the picture; the first blocks compare positions; the map to the codes is fitted to what the patches at the
tokens' places show.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vistok.errors import VistokError


def dithering_order(side: int) -> Tensor:
    """Returns the cells in the order of Bayer's matrix, where any first few are spread evenly, int64 [side^2].

    Raises:
        VistokError: the side is no power of two.
    """
    if side & (side - 1):
        raise VistokError(f"a grid of side {side} has no dithering order: its side must be a power of two.")
    rank = torch.zeros(1, 1, dtype=torch.long)
    while len(rank) < side:
        rank = torch.cat([torch.cat([4 * rank, 4 * rank + 2], 1), torch.cat([4 * rank + 3, 4 * rank + 1], 1)], 0)
    return rank.flatten().argsort()


@torch.no_grad()
def copy_by_position(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    """Makes an attention copy to each token what stands where it stands.

    Args:
        query: weight that compares positions.
        key: weight that becomes its copy.
        value, out: square weights that pass on what they are given.
    """
    key.copy_(query)
    nn.init.eye_(value)
    nn.init.eye_(out)


@torch.no_grad()
def whiten_positions(weight: Tensor, places: Tensor) -> None:
    """Makes a square projection in which positions have nothing in common.

    Args:
        weight: [D, D].
        places: positions that resemble each other, [P, D], P less than D.
    """
    _, values, directions = torch.linalg.svd(places - places.mean(0), full_matrices=False)
    kept = values > 1e-2 * values.max()
    spread = directions[kept] / values[kept, None] * len(places) ** 0.5
    weight.copy_(nn.init.orthogonal_(torch.empty(len(weight), len(spread))) @ spread)


def inputs_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Returns the first argument that a module is given while ``run`` runs."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run()
    hook.remove()
    return seen[0]


@torch.no_grad()
def fit_by_least_squares(linear: nn.Linear | nn.Conv2d, states: Tensor, targets: Tensor, ridge: float = 3e-3) -> None:
    """Starts a map with its least-squares solution.

    Args:
        linear: D to C; a 1x1 convolution will do.
        states: its inputs [N, D].
        targets: what it should give, [N, C].
        ridge: penalty on the weights, relative to the mean variance of a state's entry.
    """
    states, targets = states.double(), targets.double()
    mean, wanted = states.mean(0), targets.mean(0)
    x = states - mean
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ (targets - wanted)).T
    linear.weight.copy_(weight.view_as(linear.weight))
    linear.bias.copy_(wanted - weight @ mean)
