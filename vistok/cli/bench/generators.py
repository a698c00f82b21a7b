"""``vistok bench generators``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.output import Json, check_outputs

if TYPE_CHECKING:
    from vistok.eval.decoding.comparison import Entry


def generators(
    generators: Annotated[
        str | None,
        typer.Option(
            help="By commas: models of `vistok models` or folders of exported ones, each with a sampler behind an @ "
            "where it is not the model's plain one, e.g. llamagen@sjd:window=16,enat@masked:steps=8,runs/xar/export. "
            "[default: all that are embedded]"
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures of each of the 48 kinds of object.")] = 1,
    classes: Annotated[int, typer.Option(min=1, help="Only every so manieth kind.")] = 1,
    cfg: Annotated[float | None, typer.Option(help="Scale of guidance of all. [default: each model's own]")] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time; changes times, not pictures.")] = 1,
    json: Json = None,
) -> None:
    """Generators of scenes in one table: parameters, forwards, counted operations, time and scores.

    All are asked for the same single objects, by class or by caption. `detector` is the share of pictures with exactly
    that object, with a 95 % interval, and `detector - first` its paired difference from the first row. `FD` is the
    Frechet distance to held-out scenes of one object, which compares only rows of one run.

    Example: `vistok bench generators --generators llamagen,llamagen@sjd:window=16,mar --num 2 --batch-size 8`
    """
    check_outputs(json)
    from vistok.cli.bench.report import check_count, write_report
    from vistok.data.scenes import NUM_CLASSES
    from vistok.eval.decoding.comparison import table
    from vistok.eval.decoding.generators import ALIKE, COLUMNS, STANDARD, of_other_size, run, summarise
    from vistok.pipelines import expand
    from vistok.progress import progress
    from vistok.zoo.registry import is_embedded

    check_count(len(range(0, NUM_CLASSES, classes)) * num)
    absent: list[str] = []
    if generators is None:
        absent = [name for name in STANDARD if not is_embedded(name.partition("@")[0])]
        names = [name for name in STANDARD if name not in absent]
    else:
        names = re.split(r"\s*,\s*", generators.strip())
    entries = _entries(names, cfg)
    samples = expand(list(range(0, NUM_CLASSES, classes)), num)
    with progress("bench", -(-len(samples) // batch_size) * len(entries)) as advance:
        trials, operations = run(entries, samples, seed, batch_size, advance)
    rows = summarise(trials, operations, samples)
    settings = {"pictures": len(samples), "batch_size": batch_size, "guidance": cfg, "seed": seed}
    paragraphs = [table(rows, COLUMNS, "generator")]
    if others := of_other_size(rows):
        paragraphs.append(f"Parameters differ by more than {ALIKE:.0%} from the first row's: {', '.join(others)}.")
    if absent:
        paragraphs.append(f"Left out, as no weights are embedded: {', '.join(absent)}; name folders of your own.")
    write_report(settings, rows, paragraphs, json, {"absent": absent})


def _entries(names: list[str], cfg: float | None) -> list[Entry]:
    """What a list names, each model loaded once.

    Raises:
        VistokError: an empty or repeated name, or a generator that does not paint single scenes' objects.
    """
    from vistok.data.scenes import NUM_CLASSES
    from vistok.errors import VistokError
    from vistok.eval.decoding.comparison import Entry
    from vistok.eval.decoding.generators import Contestant, caption
    from vistok.pipelines import pipeline

    if not all(names) or len(set(names)) != len(names):
        raise VistokError(f"'{','.join(names)}' lists a generator twice or an empty name: name each once.")
    pipes, entries = {}, []
    for name in names:
        model, at, spec = name.partition("@")
        if model not in pipes:
            pipes[model] = pipeline(model)
        pipe = pipes[model]
        if pipe.conditional_on == "text":
            pipe.check([caption(kind) for kind in range(NUM_CLASSES)])
        elif pipe.model.classes != NUM_CLASSES:
            raise VistokError(
                f"'{model}' knows {pipe.model.classes} classes, not the scenes' {NUM_CLASSES}: leave it out."
            )
        if pipe.tokenizer is None:
            raise VistokError(f"'{model}' comes without a decoder, so its pictures cannot be scored: leave it out.")
        sampler = pipe.sampler(spec if at else None).prepare(pipe.model, pipe.tokenizer)
        entries.append(Entry(name, Contestant(pipe, sampler, pipe.sampling_params(cfg)), sampler.lossless))
    return entries
