"""What a forward pass costs by its width, and the window that this makes worth while.

A pass over N drafted tokens decides more tokens than a pass over one, but costs more where the machine is short of
compute.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from vistok.models.llamagen import LlamaGen

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
HALF = 6.0  # the accepted length grows about like window / (window + HALF); docs/samplers.md has the measurement


@torch.inference_mode()
def forward_cost(model: LlamaGen, rows: int = 2, widths: Sequence[int] = WIDTHS, repeats: int = 5) -> dict[int, float]:
    """Seconds of a cached forward pass, by the tokens that each row feeds.

    Args:
        model: the transformer.
        rows: sequences of the batch, twice the pictures where there is guidance.
        widths: tokens of a row.
        repeats: passes of which the fastest counts.

    Returns:
        Seconds by width; half of the picture lies in the cache.
    """
    config, device = model.config, model.tok_embeddings.weight.device
    middle = config.block_size // 2
    widths = [width for width in widths if width <= config.block_size - middle]
    state = model.new_state(rows, max(widths))
    model.prefill(model.null_condition(rows), state)
    state.cache.advance(middle)
    cost = {}
    for width in widths:
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=device)
        positions = torch.arange(middle, middle + width, device=device)
        best = float("inf")
        for _ in range(repeats + 1):  # the first pass warms up
            _synchronise(device)
            began = time.perf_counter()
            model.head(model.decode(tokens, positions, state))
            _synchronise(device)
            best = min(best, time.perf_counter() - began)
        cost[width] = best
    return cost


def best_window(cost: Mapping[int, float], half: float = HALF) -> int:
    """The window of most decided tokens a second, if a pass of N decides about N / (N + half) of what an endless one
    would.

    Args:
        cost: seconds by width, as ``forward_cost`` measures it.
        half: width that decides half of what an endless one would.

    Returns:
        A width of at least 2.
    """
    return max((width for width in cost if width >= 2), key=lambda width: width / (width + half) / cost[width])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
