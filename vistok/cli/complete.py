"""What the shell completes behind an option: names of models, samplers and methods, and recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

Completer = Callable[[str], list[str]]


def _of(names: Callable[[], Iterable[str]]) -> Completer:
    """Completes the last of names that stand behind each other with commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in names() if name.startswith(last)]

    return complete


def _models(*tasks: str) -> Completer:
    """Completes models for one of some tasks, by their own and their other names; all of them if none is named."""

    def names() -> Iterable[str]:
        from vistok.zoo import cards

        found = [card for card in cards() if not tasks or card.task in tasks]
        return (name for card in found for name in (card.name, *card.aliases))

    return _of(names)


def _tasks() -> Iterable[str]:
    from vistok.zoo import cards

    return sorted({card.task for card in cards()})


def _samplers() -> Iterable[str]:
    from vistok.samplers import SAMPLERS

    return SAMPLERS


def _text_drafters() -> Iterable[str]:
    from vistok.samplers import TEXT_DRAFTERS

    return TEXT_DRAFTERS


def _compressors() -> Iterable[str]:
    from vistok.projectors.registry import COMPRESSORS

    return COMPRESSORS


def _metrics() -> Iterable[str]:
    from vistok.eval.sets.interface import METRICS

    return METRICS


def _recipe(incomplete: str) -> list[str]:
    """Completes recipes in a folder, and those of ``recipes/`` at once."""
    folder, slash, start = incomplete.rpartition("/")
    here = Path(folder + slash or ".")
    found = (
        [folder + slash + path.name + "/" * path.is_dir() for path in here.glob(f"{start}*")] if here.is_dir() else []
    )
    if not slash:
        found += [f"recipes/{path.name}" for path in Path("recipes").glob("*.yaml")]
    return sorted(path for path in found if path.startswith(incomplete) and path.endswith((".yaml", ".yml", "/")))


_GENERATOR = _models("text-to-image", "class-to-image")
_READER = _models("visual-question-answering")
_WRITER = _models("text-generation")
_SAMPLER, _COMPRESSOR = _of(_samplers), _of(_compressors)
# By option, and by command and option where it stands for something else there.
_COMPLETERS = {
    "model": _GENERATOR,
    "generators": _GENERATOR,
    "tokenizer": _models("image-tokenizer"),
    "sampler": _SAMPLER,
    "samplers": _SAMPLER,
    "method": _COMPRESSOR,
    "drafter": _of(_text_drafters),
    "draft": _models("draft", "text-generation"),
    "metrics": _of(_metrics),
    "extractor": _models("image-features"),
    "task": _of(_tasks),
    "recipe": _recipe,
    "see": _READER,
    "write": _WRITER,
    "compress model": _READER,
    "ground model": _READER,
    "grounding model": _READER,
    "pope model": _READER,
    "vqa model": _READER,
    "vqa methods": _COMPRESSOR,
    "write model": _WRITER,
    "text model": _WRITER,
    "models name": _models(),
    "mar draft": _GENERATOR,
}


def completer_of(command: str, option: str) -> Completer | None:
    """Returns what completes an option or argument of a command; None of those that the shell completes itself."""
    return _COMPLETERS.get(f"{command} {option}", _COMPLETERS.get(option))
