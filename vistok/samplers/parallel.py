"""Two language models that run at the same time, as PEARL's rounds need them, and what a round then costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vistok.samplers.params import SamplingParams
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.step_cost import step_cost

ACCEPTANCE = 0.7  # of a drafted token, where the cost model knows nothing better


class Side(Protocol):
    """A model that reads one text."""

    def laws(self, text: Tensor, rows: int) -> Tensor:
        """Returns the laws behind the last ``rows`` tokens of a text, int64 [n] to [rows, V], in one forward."""


class CachedSide:
    """A causal LM that reads one text, with a cache that follows it.

    Args:
        model: loaded by transformers.
        params: how logits become laws.
        length: most tokens of the text.
        vocabulary: size of the laws.
    """

    def __init__(self, model: nn.Module, params: SamplingParams, length: int, vocabulary: int):
        self.lm, self.params, self.vocabulary = CachedLM(model, length, end=length), params, vocabulary
        self._read = torch.zeros(0, dtype=torch.int64, device=model.get_input_embeddings().weight.device)

    @torch.inference_mode()
    def laws(self, text: Tensor, rows: int) -> Tensor:
        """See ``Side.laws``; what is not in the cache yet is read, and what another text put there is dropped."""
        both = min(len(self._read), len(text) - rows)
        same = int((self._read[:both] != text[:both]).long().cumsum(0).eq(0).sum())
        if not len(self._read):  # the first token alone makes the cache
            self.lm.read(text[None, :1], torch.ones(1, dtype=torch.int64, device=text.device))
            same = 1 if len(text) > rows else 0
        self.lm.cache.crop(same)
        new = text[same:]
        depth = torch.arange(len(new), device=text.device)
        logits = self.lm.forward(new[None], depth[None], (depth <= depth[:, None])[None])
        self.lm.cache.advance(len(new))
        self._read = text
        logits = logits[0, -rows:, : self.vocabulary]
        return self.params.probabilities(logits)


@contextlib.contextmanager
def executors(device: torch.device) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Gives a function that runs two functions at once, in two threads, and returns what both gave.

    On a GPU each thread has a stream of its own.
    """
    streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else [None, None]

    def on(stream: Any, function: Callable[[], Any]) -> Any:
        if stream is None:
            return function()
        with torch.cuda.stream(stream):
            result = function()
            stream.synchronize()
        return result

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:

        def together(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
            jobs = first.submit(on, streams[0], one), second.submit(on, streams[1], other)
            return jobs[0].result(), jobs[1].result()

        yield together


def tokens_a_round(acceptance: float, gamma: int) -> float:
    """Returns the verified tokens of a round in the long run, if drafted tokens are accepted with this probability."""
    whole = acceptance**gamma
    behind = sum(acceptance**i for i in range(1, gamma + 1)) + 1 - whole
    post = acceptance / (acceptance + 1 - whole)
    return 1 - post + post * behind


@dataclass(frozen=True)
class Forecast:
    """Seconds of a token, by schedule: plain decoding, draft-then-verify, and both models at the same time."""

    plain: float
    serial: float
    parallel: float


def forecast(
    model: nn.Module, draft: nn.Module, gamma: int, acceptance: float = ACCEPTANCE, sides: Sequence[Side] = ()
) -> Forecast:
    """Returns what a token will cost on this machine; a round of both models at once is measured, not assumed.

    Args:
        model, draft, gamma: of the rounds.
        acceptance: of a drafted token.
        sides: the two models as the rounds run them, with room for 64 tokens; both in this process if empty.
    """
    one, small = step_cost(model), step_cost(draft)
    rows = min(width for width in one if width >= gamma)
    serial = (gamma * small[1] + one[rows]) / sum(acceptance**i for i in range(gamma + 1))
    sides = sides or [CachedSide(each, SamplingParams(greedy=True), 64, 1) for each in (model, draft)]
    text = torch.zeros(32, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    with executors(text.device) as together:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            together(lambda: sides[0].laws(text, gamma), lambda: [sides[1].laws(text, 1) for _ in range(gamma)])
            best = min(best, time.perf_counter() - began)
    return Forecast(one[1], serial, best / tokens_a_round(acceptance, gamma))
