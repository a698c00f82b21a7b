"""Samplers that draw the same images in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vistok.eval.decoding.comparison import Entry, Trial, run_in_turn

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.pipelines import Output, Pipeline, Sample
    from vistok.samplers.params import SamplingParams
    from vistok.samplers.stats import Stats


class Watched:
    """A sampler whose draws run inside another call, such as a clock; the decoding to pixels does not.

    Args:
        sampler: what draws, prepared.
        around: gets the draw as a function, and returns its result.
    """

    def __init__(self, sampler: Any, around: Callable[[Callable[[], Any]], Any]):
        self._sampler, self._around = sampler, around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def prepare(self, *_: Any) -> Watched:
        """Returns itself: the sampler is prepared already."""
        return self

    def sample(self, *args: Any, **options: Any) -> Any:
        """Draws a batch."""
        return self._around(lambda: self._sampler.sample(*args, **options))


def timed(trial: Trial, sampler: Any) -> Watched:
    """Returns a sampler whose draws' times a trial keeps."""

    def clock(draw: Callable[[], Any]) -> Any:
        with trial.timed():
            return draw()

    return Watched(sampler, clock)


def draw_in_turn(
    pipe: Pipeline,
    entries: Sequence[Entry],
    samples: Sequence[Sample],
    params: SamplingParams,
    seed: int = 0,
    batch_size: int = 1,
    advance: Callable[[], None] | None = None,
) -> list[Trial]:
    """Draws the same samples with every entry, batch by batch.

    Args:
        pipe: what paints.
        entries: samplers, the baseline first. Each draws one image beforehand, which loads and measures what it needs.
        samples: what is painted.
        params, seed, batch_size: as in ``Pipeline.iterate``.
        advance: called whenever an entry has drawn a batch.

    Returns:
        A trial of each entry, whose results are the ``Output`` of each batch.

    Raises:
        VistokError: a sampler that does not fit the model.
    """
    prepared = [replace(e, method=e.method.prepare(pipe.model, pipe.tokenizer)) for e in entries]
    for entry in prepared:
        list(pipe.iterate(samples[:1], entry.method, params, seed))
    trials = [Trial(entry) for entry in prepared]

    def draw(trial: Trial, batch: Sequence[Sample]) -> Output:
        ((_, output),) = pipe.iterate(batch, timed(trial, trial.entry.method), params, seed, batch_size)
        return output

    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    run_in_turn(trials, batches, draw, advance)
    return trials


def images_of(trial: Trial) -> list[Image]:
    """Returns the images of a trial in the order of the samples."""
    return [image for output in trial.results for image in output.images]


def stats_of(trial: Trial) -> Stats:
    """Returns the statistics of all batches of a trial as one."""
    parts = [output.stats for output in trial.results]
    return type(parts[0]).merged(parts)
