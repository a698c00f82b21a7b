"""What a step of a text model costs by the rows that it scores, measured once on the machine that decodes."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.samplers.clock import seconds
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.support import learned_positions, parts_of, unobserved

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
BEFORE = 48
ROUNDS, SETTLED = 8, 0.97  # measurements at most; they end when one makes no width so much faster

_measured: weakref.WeakKeyDictionary[nn.Module, dict[tuple, dict[int, float]]] = weakref.WeakKeyDictionary()


@torch.inference_mode()
def step_cost(model: nn.Module, batch: int = 1, widths: Sequence[int] = WIDTHS) -> dict[int, float]:
    """Returns the seconds of a cached step, by the rows of each sequence.

    Args:
        model: a causal LM, or a multimodal one whose family is known.
        batch: sequences.
        widths: rows that are tried; those that the model's table of positions has no room for are left out.
    """
    known, weight = _measured.setdefault(model, {}), model.get_input_embeddings().weight
    key = _key(weight, batch, widths)
    if key in known:
        return known[key]
    model = unobserved(model)
    table = learned_positions(model)
    before = BEFORE if table is None else max(1, min(BEFORE, table // 2))
    lm = CachedLM(model, before + max(widths), end=table, **parts_of(model))
    text = torch.zeros(batch, before, dtype=torch.int64, device=weight.device)
    lm.read(text, torch.full((batch,), before, device=weight.device))
    known[key] = seconds_by_width(lambda tokens, depth, seen: lm.forward(tokens, depth, seen), weight, batch, widths)
    return known[key]


@torch.inference_mode()
def head_cost(
    network: nn.Module, output: nn.Module, batch: int = 1, widths: Sequence[int] = WIDTHS[:4]
) -> dict[int, float]:
    """Returns the seconds of a call of a draft head, its logits included, by the rows of each sequence.

    Args:
        network: an EAGLE network of any generation, or Clover's.
        output: the target's output layer.
        batch, widths: as of ``step_cost``.
    """
    known, weight = _measured.setdefault(network, {}), network.embed_tokens.weight
    key = _key(weight, batch, widths)
    if key in known:
        return known[key]
    cache = network.new_cache(batch, BEFORE + max(widths))
    cache.crop(BEFORE)
    features = weight.new_zeros(batch, max(widths), network.config.hidden_size)

    def call(tokens: Tensor, depth: Tensor, seen: Tensor) -> None:
        slots = (BEFORE + depth).expand(batch, -1)
        network.logits(
            network(features[:, : tokens.shape[1]], tokens, cache, slots, seen.expand(batch, -1, -1)), output
        )

    known[key] = seconds_by_width(call, weight, batch, widths)
    return known[key]


def _key(weight: Tensor, batch: int, widths: Sequence[int]) -> tuple:
    return batch, tuple(widths), weight.dtype, str(weight.device), torch.get_num_threads()


def seconds_by_width(
    call: Callable[[Tensor, Tensor, Tensor], Any], weight: Tensor, batch: int, widths: Sequence[int]
) -> dict[int, float]:
    """Returns the seconds of calls with chains of these rows; the fastest of several counts.

    Args:
        call: is given tokens, depth and sight, as ``CachedLM.forward``.
        weight: of the device that is measured.
        batch: sequences.
        widths: rows.
    """
    device, cost = weight.device, dict.fromkeys(widths, float("inf"))
    for number in range(ROUNDS + 1):  # in turn, so that a busy moment of the machine meets all widths alike
        settled = number > 2
        for width in widths:
            tokens = torch.zeros(batch, width, dtype=torch.int64, device=device)
            seen = torch.ones(1, width, width, dtype=torch.bool, device=device).tril()
            depth = torch.arange(width, device=device)[None]
            _wait(device)
            began = seconds(device)
            call(tokens, depth, seen)
            _wait(device)
            taken = seconds(device) - began
            if number:  # the first warms up
                settled &= taken > SETTLED * cost[width]
                cost[width] = min(cost[width], taken)
        if settled:
            break
    for fewer, more in reversed(list(itertools.pairwise(sorted(cost)))):  # fewer rows cost no more than more
        cost[fewer] = min(cost[fewer], cost[more])
    for fewer, more in itertools.pairwise(sorted(cost)):  # nor do more rows than the same in several calls
        cost[more] = min(cost[more], cost[fewer] * -(-more // fewer))
    return cost


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
