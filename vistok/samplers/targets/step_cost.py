"""What a step of a text model costs by the rows that it scores, measured once on the machine that decodes."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Sequence

import torch
from torch import nn

from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.support import learned_positions, parts_of, unobserved

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
BEFORE, REPEATS = 48, 5

_measured: weakref.WeakKeyDictionary[nn.Module, dict[tuple, dict[int, float]]] = weakref.WeakKeyDictionary()


@torch.inference_mode()
def step_cost(model: nn.Module, batch: int = 1, widths: Sequence[int] = WIDTHS) -> dict[int, float]:
    """Returns the seconds of a cached step, by the rows of each sequence; the fastest of five counts.

    Args:
        model: a causal LM, or a multimodal one whose family is known.
        batch: sequences.
        widths: rows that are tried; those that the model's table of positions has no room for are left out.
    """
    known = _measured.setdefault(model, {})
    weight = model.get_input_embeddings().weight
    key = (batch, tuple(widths), weight.dtype, str(weight.device), torch.get_num_threads())
    if key in known:
        return known[key]
    model = unobserved(model)
    table = learned_positions(model)
    before = BEFORE if table is None else max(1, min(BEFORE, table // 2))
    lm = CachedLM(model, before + max(widths), end=table, **parts_of(model))
    text = torch.zeros(batch, before, dtype=torch.int64, device=weight.device)
    lm.read(text, torch.full((batch,), before, device=weight.device))
    cost = dict.fromkeys(widths, float("inf"))
    for number in range(REPEATS + 1):  # in turn, so that a busy moment of the machine meets all widths alike
        for width in widths:
            tokens = torch.zeros(batch, width, dtype=torch.int64, device=weight.device)
            seen = torch.ones(1, width, width, dtype=torch.bool, device=weight.device).tril()
            depth = torch.arange(width, device=weight.device)[None]
            _wait(weight.device)
            began = time.perf_counter()
            lm.forward(tokens, depth, seen)
            _wait(weight.device)
            if number:  # the first warms up
                cost[width] = min(cost[width], time.perf_counter() - began)
    for fewer, more in reversed(list(itertools.pairwise(sorted(cost)))):  # fewer rows cost no more than more
        cost[fewer] = min(cost[fewer], cost[more])
    known[key] = cost
    return cost


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
