"""Samplers of one model side by side: the same prompts and seeds, target forwards, accepted lengths, seconds, scores.

Figures of a row:

- ``forwards``: target forwards an image, the prefill not counted; ``draft_forwards``: calls of a draft network a batch;
- ``accepted_length``: tokens decided by a verify step, which is also plain decoding's forwards over the sampler's;
- ``acceptance_rate``: accepted over proposed draft tokens, None without drafts;
- ``seconds`` of a batch, ``speed_up`` and ``cpu_speed_up`` over plain decoding, in wall and processor time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vistok.errors import VistokError, unknown_name
from vistok.eval.decoding.comparison import Column, Entry, Figure, Row, Trial, choose_entries, time_figures
from vistok.eval.decoding.estimate import Estimate, ratio_estimate
from vistok.eval.decoding.images import stats_of
from vistok.samplers.drafters.eagle import Eagle
from vistok.samplers.drafters.jacobi import INITS, SpeculativeJacobi
from vistok.samplers.drafters.plain import Autoregressive
from vistok.samplers.drafters.recycling import Recycling
from vistok.samplers.named import SAMPLERS
from vistok.samplers.verifiers.lantern import Lantern

if TYPE_CHECKING:
    from vistok.pipelines import Pipeline

COLUMNS = (
    Column("forwards", "forwards", ".1f"),
    Column("accepted length", "accepted_length"),
    Column("seconds", "seconds"),
    Column("speed-up", "speed_up"),
    Column("CPU speed-up", "cpu_speed_up"),
)
WINDOWS = (8, 16, 32, 64)
ADDITIVE = (0.05, 0.1, 0.2, 0.4)  # LANTERN's published grid of delta
MULTIPLICATIVE = ((10, 5.0), (5, 10.0), (5, 20.0))  # LANTERN++'s published pairs of k and lambda


def standard_entries(drafter: str | None) -> list[Entry]:
    """Returns what a comparison runs where nothing is chosen; plain decoding comes first.

    Args:
        drafter: the model's EAGLE network, for exact speculation and LANTERN; they are left out without one.
    """
    found = {"ar": Autoregressive()}
    found |= {f"sjd published {init}": SpeculativeJacobi(16, init, "published") for init in INITS}
    found |= {f"sjd coupled {window}": SpeculativeJacobi(window) for window in WINDOWS}
    found |= {"recycling": Recycling()}
    if drafter is not None:
        static = {"drafter": drafter, "tree": "mc_sim_7b_63"}
        found |= {"eagle dynamic": Eagle(drafter), "eagle static": Eagle(**static)}
        found |= {f"lantern delta {delta:g}": Lantern(drafter, delta=delta) for delta in ADDITIVE}
        for k, factor in MULTIPLICATIVE:
            lantern = Lantern(k=k, delta=factor, mode="multiplicative", **static)
            found[f"lantern++ k {k} lambda {factor:g}"] = lantern
    return [Entry(name, sampler, sampler.lossless) for name, sampler in found.items()]


def choose_samplers(pipe: Pipeline, standard: Sequence[Entry], text: str) -> list[Entry]:
    """Returns plain decoding and the samplers that a text lists by commas.

    Args:
        pipe: the model.
        standard: the standard comparison, plain decoding first.
        text: of each sampler its name with options, such as ``sjd:window=16:init=repeat-up``, or a word that selects
            the entries of the standard comparison whose names contain it, which goes first.

    Raises:
        VistokError: neither a word of the standard comparison nor a sampler of the model.
    """
    names = [entry.name for entry in standard]
    found = list(standard[:1])
    for word in re.split(r"\s*,\s*", text.strip()):
        if not word:
            raise VistokError(f"'{text}' lists an empty name: separate samplers by single commas.")
        if word in names:
            found.append(standard[names.index(word)])
        elif any(word in name for name in names):
            found += choose_entries(standard, [word], "sampler")[1:]
        elif re.split("[:=]", word)[0] in SAMPLERS:
            sampler = pipe.sampler(word)
            found.append(Entry(word, sampler, sampler.lossless))
        else:
            raise unknown_name("sampler", word, [*names, *SAMPLERS])
    return list({entry.name: entry for entry in found}.values())


def summarise(trials: Sequence[Trial], scores: Sequence[Mapping[str, Estimate | float]] | None = None) -> list[Row]:
    """Returns the figures of all trials against the first, which decodes plainly.

    Args:
        trials: of the same samples.
        scores: of each trial's images.
    """
    rows = []
    for number, trial in enumerate(trials):
        stats = stats_of(trial)
        forwards = stats.forwards.tolist()
        figures: dict[str, Figure] = {
            "forwards": sum(forwards) / len(forwards),
            "draft_forwards": stats.draft_forwards / stats.batches,
            "accepted_length": ratio_estimate((stats.lengths - 1).tolist(), forwards),
            "acceptance_rate": stats.acceptance_rate if int(stats.proposed.sum()) else None,
        }
        figures |= time_figures(trials[0], trial)
        rows.append(Row(trial.entry.name, trial.entry.lossless, figures, scores=scores[number] if scores else {}))
    return rows
