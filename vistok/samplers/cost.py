"""What a forward pass costs by its width, and the window that this makes worth while.

A pass over N drafted tokens decides more tokens than a pass over one, but costs more where the machine is short of
compute.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vistok.models.interface import Condition
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Verdict
from vistok.samplers.targets import target_of
from vistok.samplers.tree import TokenTree, TreeShape

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
# The accepted length of a window is about MOST window / (window + HALF); docs/samplers.md has the measurement.
MOST, HALF = 5.0, 6.0
# A window must win over plain decoding by this: it costs more than a pass, and a batch waits for its last.
MARGIN = 1.1


@torch.inference_mode()
def forward_cost(
    model: nn.Module, params: SamplingParams, batch: int = 1, widths: Sequence[int] = WIDTHS, repeats: int = 5
) -> dict[int, float]:
    """Returns the seconds of a cached forward pass, by the tokens that each image feeds.

    Args:
        model: an ``AutoregressiveGenerator``.
        params: with guidance, a pass has twice as many sequences.
        batch: images that are drawn together.
        widths: tokens of an image in a pass.
        repeats: passes of which the fastest counts.

    Returns:
        Seconds by width; half of the image lies in the cache.
    """
    middle = model.tokens.length // 2
    widths = [width for width in widths if width <= model.tokens.length - middle]
    null = model.null_condition(batch)
    condition = Condition(null) if isinstance(null, torch.Tensor) else null
    target = target_of(model, condition, params, max(*widths, middle))
    device = next(model.parameters()).device

    def chain(nodes: int) -> TokenTree:
        tokens = torch.zeros(batch, nodes, dtype=torch.int64, device=device)
        return TokenTree(tokens, TreeShape.chain_of(nodes, device))

    decided = torch.ones(batch, dtype=torch.int64, device=device)
    target.prefill()
    half = chain(middle)
    target.forward(half, decided)
    decided = decided + middle
    target.commit(Verdict(half.tokens, decided - 1), 1, middle)
    cost = {}
    for width in widths:
        tree = chain(width)
        best = float("inf")
        for _ in range(repeats + 1):  # the first pass warms up
            _synchronise(device)
            began = time.perf_counter()
            target.forward(tree, decided)
            _synchronise(device)
            best = min(best, time.perf_counter() - began)
        cost[width] = best
    return cost


def best_window(cost: Mapping[int, float]) -> int:
    """Returns the window of most decided tokens a second; 1, plain decoding, where no window is clearly better.

    Args:
        cost: seconds by width, as ``forward_cost`` measures it.
    """
    best = max((width for width in cost if width >= 2), key=lambda width: width / (width + HALF) / cost[width])
    gain = MOST * best / (best + HALF) * cost[1] / cost[best] if 1 in cost else MARGIN
    return best if gain >= MARGIN else 1


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
