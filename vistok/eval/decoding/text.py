"""Ways to decode text side by side, transformers' own among them: target forwards, tokens a forward, and time.

Processor time is reported beside wall time, because it hardly depends on what else the machine does. Figures of a row,
of one kind of prompts or of all:

- ``same``: share of prompts with the tokens of plain ``generate``;
- ``forwards_per_100``: target forwards for a hundred tokens, prefill included; ``draft_forwards_per_100``: likewise of
  the draft model; ``tokens_per_forward``: accepted drafts and the target's own token;
- ``seconds``, ``cpu_seconds``: of a hundred tokens;
- ``fewer_forwards``, ``speed_up``, ``cpu_speed_up``: plain ``generate``'s forwards, wall and processor time a token
  over the entry's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.eval.decoding.comparison import Column, Entry, Figure, Row, Trial, run_in_turn
from vistok.eval.decoding.estimate import paired_estimate, ratio_estimate
from vistok.eval.decoding.prompts import Text
from vistok.ops.noise import check_seed
from vistok.samplers.targets.step_cost import step_cost

ALL = "all"  # the kind of a row over all prompts
COLUMNS = (
    Column("as plain", "same", ".0%"),
    Column("forwards", "forwards_per_100", ".1f"),
    Column("tokens/forward", "tokens_per_forward"),
    Column("fewer", "fewer_forwards"),
    Column("draft forwards", "draft_forwards_per_100", ".1f"),
    Column("s", "seconds"),
    Column("speed-up", "speed_up"),
    Column("CPU s", "cpu_seconds"),
    Column("CPU speed-up", "cpu_speed_up"),
)


class Continuation(NamedTuple):
    """What a way to decode made of a prompt.

    Attributes:
        sequence: prompt and new tokens, int64 [1, L + n].
        tokens: new tokens n.
        forwards, draft_forwards: calls of the target, prefill included, and of the draft model.
    """

    sequence: Tensor
    tokens: int
    forwards: int
    draft_forwards: int


@contextmanager
def counted_calls(*models: nn.Module | None) -> Iterator[list[int]]:
    """Counts the calls of models while the block runs, in a list in their order."""
    calls = [0] * len(models)

    def counter(number: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[number] += 1

        return count

    present = [(number, model) for number, model in enumerate(models) if model is not None]
    hooks = [model.register_forward_pre_hook(counter(number)) for number, model in present]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def continue_in_turn(
    model: nn.Module,
    draft: nn.Module | None,
    entries: Sequence[Entry],
    texts: Sequence[Text],
    options: dict[str, Any],
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> list[Trial]:
    """Lets all entries continue every prompt.

    Args:
        model, draft: the target and the draft model.
        entries: the first is plain generate.
        texts: prompts.
        options: of every ``generate``, e.g. ``max_new_tokens`` and ``do_sample``.
        seed: of the draws.
        advance: called after each run.

    Returns:
        A trial of each entry, whose results are a ``Continuation`` of each prompt.
    """
    trials = [Trial(replace(e, method=e.method()) if callable(e.method) else e) for e in entries]
    for each in (model, draft):  # what sized trees want to know is measured once, and belongs to no trial
        if each is not None:
            step_cost(each)

    def decode(trial: Trial, unit: tuple[int, Text]) -> Continuation:
        number, text = unit
        ids = text.ids.to(model.device)
        mask = torch.ones_like(ids)
        torch.manual_seed((check_seed(seed) + number) % (1 << 64))
        with counted_calls(model, draft) as calls, trial.timed():
            found = model.generate(ids, attention_mask=mask, **options, **trial.entry.method)
        return Continuation(found, found.shape[1] - ids.shape[1], *calls)

    run_in_turn(trials, list(enumerate(texts)), decode, advance)
    return trials


def summarise(trials: Sequence[Trial], texts: Sequence[Text]) -> list[Row]:
    """Returns a row for each trial and kind of prompt, and for all prompts together; plain generate's come first."""
    kinds = {
        kind: [i for i, text in enumerate(texts) if text.kind == kind] for kind in dict.fromkeys(t.kind for t in texts)
    }
    kinds[ALL] = list(range(len(texts)))
    return [_row(trials[0], trial, kind, which) for kind, which in kinds.items() for trial in trials]


def _row(plain: Trial, trial: Trial, kind: str, which: Sequence[int]) -> Row:
    """The figures of one trial over some of the prompts."""

    def columns(of: Trial) -> dict[str, list[float]]:
        found = {name: [getattr(of.results[i], name) for i in which] for name in Continuation._fields[1:]}
        return found | {name: [getattr(of, name)[i] for i in which] for name in ("seconds", "cpu_seconds")}

    base, mine = columns(plain), columns(trial)

    def per_100(name: str) -> float:
        return 100 * sum(mine[name]) / sum(mine["tokens"])

    def times(name: str) -> Figure:
        return paired_estimate(
            lambda theirs, tokens, my, my_tokens: theirs * my_tokens / (tokens * my),
            *(base[name], base["tokens"], mine[name], mine["tokens"]),
        )

    same = sum(torch.equal(plain.results[i].sequence, trial.results[i].sequence) for i in which)
    figures: dict[str, Figure] = {
        "same": same / len(which),
        "forwards_per_100": per_100("forwards"),
        "tokens_per_forward": ratio_estimate(mine["tokens"], mine["forwards"]),
        "draft_forwards_per_100": per_100("draft_forwards"),
        "seconds": per_100("seconds"),
        "cpu_seconds": per_100("cpu_seconds"),
        "fewer_forwards": times("forwards"),
        "speed_up": times("seconds"),
        "cpu_speed_up": times("cpu_seconds"),
    }
    return Row(trial.entry.name, trial.entry.lossless, figures, kind)
