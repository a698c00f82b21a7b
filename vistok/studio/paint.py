"""The tab *Paint*: a prompt is painted before one's eyes, beside plain decoding."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from vistok.errors import VistokError
from vistok.pipelines import Pipeline, Sample
from vistok.samplers import SAMPLERS, Stats
from vistok.samplers.interface import Partial, shows_steps
from vistok.samplers.trace import acceptance_map, heat_map, order_map
from vistok.studio import html
from vistok.studio.streaming import streamed

LONGEST_PROMPT = 300  # characters
SUGGESTED = ("sjd:window=16", "eagle", "lantern", "recycling")  # beside the plain sampler, where they fit


@dataclass(frozen=True)
class Painted:
    """An image that is drawn, or as far as it is drawn.

    Attributes:
        picture: the image.
        sampler: the text that named how it is drawn.
        step: verify steps so far.
        stats: of the run; None while it lasts.
    """

    picture: Image.Image
    sampler: str
    step: int = 0
    stats: Stats | None = None


def samplers_of(pipe: Pipeline) -> list[str]:
    """Returns samplers to choose from for a pipeline, its plain one first."""
    family = pipe.family
    fitting = [
        name for name, kind in SAMPLERS.usable().items() if kind.interface == family.interface and name != family.plain
    ]
    named = [text for text in SUGGESTED if text.partition(":")[0] in fitting]
    rest = [name for name in fitting if name not in {text.partition(":")[0] for text in named}]
    return [family.plain, *named, *rest]


def condition_of(pipe: Pipeline, text: str) -> str | int:
    """Returns a prompt, or the class that a text names where the pipeline paints classes.

    Raises:
        VistokError: it cannot be painted.
    """
    text = (text or "").strip()
    if len(text) > LONGEST_PROMPT:
        raise VistokError(f"the prompt has {len(text)} characters: shorten it to {LONGEST_PROMPT}.")
    condition = int(text) if pipe.conditional_on == "class" and text.isdecimal() else text
    pipe.check([condition])
    return condition


def paint(
    pipe: Pipeline,
    prompt: str,
    sampler: str | None = None,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
) -> Iterator[Painted]:
    """Yields an image while it is drawn; the last one is whole and has the statistics of the run.

    Args:
        pipe: what paints.
        prompt: what to paint, or a class.
        sampler: its name with options; the plain one if None.
        seed: the same seed gives the same image.
        guidance, temperature: the model's own if None.

    Raises:
        VistokError: the prompt, the sampler or a number cannot be used.
    """
    condition, name = condition_of(pipe, prompt), sampler or pipe.family.plain
    chosen = pipe.sampler(name)
    params = pipe.sampling_params(guidance, temperature)

    def work(show) -> Painted:
        spent = 0.0  # on showing, which is no part of drawing

        def watch(partial: Partial) -> None:
            nonlocal spent
            began = time.perf_counter()
            show(lambda: Painted(pipe.preview(partial, seed)[0], name, partial.step))
            spent += time.perf_counter() - began

        watched = watch if shows_steps(chosen) and pipe.tokenizer is not None else None
        ((_, output),) = pipe.iterate([Sample(0, condition)], chosen, params, seed, watch=watched)
        stats = replace(output.stats, seconds=output.stats.seconds - spent)
        return Painted(output.images[0], name, int(stats.forwards[0]), stats)

    return streamed(work)


def painting_html(pipe: Pipeline, prompt: str, drawn: Painted | None, plain: Painted | None = None) -> str:
    """Returns what is drawn so far: the image, the one of plain decoding, where steps decided many tokens, and the
    figures of both once they are known."""
    figures = [_shot(prompt, each) for each in (drawn, plain) if each is not None]
    if drawn is None:
        return html.row(*figures)
    below = ""
    if drawn.stats is not None:
        if pipe.model.tokens.layout == "grid":
            figures.append(_steps(drawn.stats, pipe.model.tokens.line))
        below = _comparison(drawn.stats, drawn.step, plain)
        below += html.bars(drawn.stats.emitted(0), "Tokens of each step")
    return html.row(*figures) + below


def _steps(stats: Stats, line: int) -> str:
    """Which tokens were decided together, or, where they come in any order, when."""
    heat = heat_map(stats, 0, line)
    if stats.in_order:
        most = acceptance_map(stats, 0, line).max()
        legend = f"dark: decided alone; bright: together with up to {most - 1} others"
        return html.figure(html.img(heat, f"tokens a step, 1 to {most}"), "Tokens a step", legend)
    last = order_map(stats, 0, line).max()
    return html.figure(html.img(heat, f"steps 1 to {last}"), "When tokens were decided", "dark: early; bright: late")


def _shot(prompt: str, painted: Painted) -> str:
    stats = painted.stats
    if stats is None:
        caption = f"step {painted.step}"
    else:
        caption = f"{painted.step} steps, {stats.mean_accepted_length:.2f} tokens a step, {stats.seconds:.2f} s"
    return html.figure(html.img(painted.picture, f"{prompt}, by {painted.sampler}"), painted.sampler, caption)


def _comparison(stats: Stats, steps: int, plain: Painted | None) -> str:
    figures = [
        (str(stats.tokens), "tokens"),
        (str(steps), "steps of the model"),
        (f"{stats.mean_accepted_length:.2f}", "tokens a step"),
        (f"{stats.seconds:.2f} s", "in all"),
    ]
    if plain is not None and plain.stats is not None and steps:
        figures.append((f"{plain.step / steps:.1f} times", "fewer steps than plain decoding"))
        ratio = plain.stats.seconds / max(stats.seconds, 1e-9)
        figures.append((f"{ratio:.2f} times", "its speed"))
    return html.chips(figures)
