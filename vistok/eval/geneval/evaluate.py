"""GenEval end to end: pictures and metadata from anywhere in, records, summary and report out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from vistok.data.images import grid, load_image, save_image
from vistok.errors import VistokError
from vistok.eval.geneval.detectors import ColourClassifier, Detector
from vistok.eval.geneval.folder import PromptFolder, PromptSet, read_set
from vistok.eval.geneval.judge import ScoringOptions, judge, keep
from vistok.eval.geneval.metadata import TASKS, digest
from vistok.eval.geneval.summary import GenEvalSummary, summarise
from vistok.eval.protocol import Protocol, Result
from vistok.files import atomic_path, to_json
from vistok.jobs import ShardedJob
from vistok.progress import progress
from vistok.runtime import processes

GRID_PICTURES = 64


@dataclass(frozen=True)
class GenEvalReport:
    """A scored set.

    Args:
        records: one a picture, in the reference's format.
        summary: of the records.
        protocol: detector, thresholds and prompts.
        ceiling: summary of perfect pictures after the tokenizer's reconstruction, where that is known.
        notes: sentences about what the set lacks or holds besides.
    """

    records: list[dict]
    summary: GenEvalSummary
    protocol: Protocol
    ceiling: GenEvalSummary | None = None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[dict]:
        return [record for record in self.records if not record["correct"]]

    def result(self, name: str) -> Result:
        """Returns the overall score with its protocol."""
        details = {task: score.accuracy for task, score in self.summary.tasks.items()}
        if self.ceiling is not None:
            details["ceiling"] = self.ceiling.overall
        return Result(name, self.summary.overall, self.protocol, details=details)


def check_classes(metadata: Iterable[dict], detector: Detector, colours: ColourClassifier) -> None:
    """Raise VistokError if a prompt asks for an object or a colour that cannot be found."""
    for record in metadata:
        for item in [*record["include"], *record.get("exclude", [])]:
            if item["class"] not in detector.class_names:
                raise VistokError(
                    f"the detector {detector.name} cannot find a '{item['class']}' (\"{record['prompt']}\"): "
                    "choose the detector that the prompts were written for."
                )
            if item.get("color", colours.colour_names[0]) not in colours.colour_names:
                raise VistokError(f"the colour classifier does not know '{item['color']}' (\"{record['prompt']}\").")


def score_images(
    pictures: Iterable[tuple[dict, Image.Image, str]],
    detector: Detector,
    colours: ColourClassifier,
    options: ScoringOptions | None = None,
    batch_size: int = 16,
) -> Iterator[dict]:
    """Judges pictures.

    Args:
        pictures: (metadata, RGB picture, name) each.
        detector: finds the objects.
        colours: names their colours.
        options: scoring options; by default the detector's own.
        batch_size: pictures that the detector gets at once.

    Yields:
        One record a picture: filename, tag, prompt, correct, reason, metadata, details.
    """
    options = options or detector.options
    stream = iter(pictures)
    while batch := list(islice(stream, batch_size)):
        found = detector.detect([image for _, image, _ in batch])
        for (metadata, image, name), detections in zip(batch, found, strict=True):
            kept = keep(detections, metadata["tag"], options)

            def colours_of(label: str, chosen: Sequence, image: Image.Image = image) -> list[str]:
                return colours.colours(image, label, chosen)

            verdict = judge(kept, metadata, colours_of, colours.colour_names, options)
            details = {label: [[*d.box, d.score] for d in chosen] for label, chosen in kept.items()}
            yield {
                "filename": name,
                "tag": metadata["tag"],
                "prompt": metadata["prompt"],
                "correct": verdict.correct,
                "reason": verdict.reason,
                "metadata": json.dumps(metadata),
                "details": json.dumps(details),
            }


def _load(prompts: Sequence[PromptFolder]) -> Iterator[tuple[dict, Image.Image, str]]:
    for prompt in prompts:
        for path in prompt.images:
            yield prompt.metadata, load_image(path), str(path)


def refuse_missing(found: PromptSet, missing_wrong: bool = False) -> None:
    """Refuse a set that lacks prompts of its metadata file, unless they count as wrong.

    Raises:
        VistokError: naming the first of them.
    """
    if not found.missing or missing_wrong:
        return
    named = "; ".join(f'{number:05d} "{record["prompt"]}"' for number, record in found.missing[:5])
    more = f" and {len(found.missing) - 5} more" if len(found.missing) > 5 else ""
    total = len(found.prompts) + len(found.missing)
    raise VistokError(
        f"{len(found.missing)} of the {total} prompts of the metadata file have no pictures ({named}{more}): paint "
        "them, or count them as wrong with --missing-wrong."
    )


def evaluate_folder(
    root: str | Path,
    detector: Detector,
    colours: ColourClassifier,
    work: str | Path,
    metadata: str | Path | None = None,
    options: ScoringOptions | None = None,
    ceiling: GenEvalSummary | None = None,
    missing_wrong: bool = False,
) -> GenEvalReport:
    """Scores a set in the published folder layout; resumable, and shared by the processes of ``accelerate launch``.

    Args:
        root: the set.
        detector: finds the objects.
        colours: names their colours.
        work: where the records of each prompt are kept; a later call goes on from them.
        metadata: the metadata file of the set (see :func:`~vistok.eval.geneval.folder.read_folders`).
        options: scoring options; by default the detector's own.
        ceiling: what the tokenizer's reconstruction allows, for the report.
        missing_wrong: count prompts of the metadata file without pictures as wrong, instead of refusing the set.

    Raises:
        VistokError: a set that cannot be scored or lacks prompts, or a ``work`` folder of another set.
    """
    state = processes()
    options = options or detector.options
    found = read_set(root, metadata)
    prompts = found.prompts
    refuse_missing(found, missing_wrong)
    check_classes((prompt.metadata for prompt in prompts), detector, colours)
    job = ShardedJob(work, _identity(prompts, detector, colours, options), len(prompts), ".json")
    pending = job.pending(state.process_index, state.num_processes)
    with progress("geneval", len(pending)) as advance:
        for shard in pending:
            records = list(score_images(_load([prompts[shard]]), detector, colours, options))
            job.claim()
            with atomic_path(job.path(shard)) as temporary:
                temporary.write_text(to_json(records), encoding="utf-8")
            advance()
    state.wait_for_everyone()
    job.check_complete()
    records = [record for shard, prompt in enumerate(prompts) for record in _read_records(job.path(shard), prompt)]
    records += _wrong_records(found)
    wanted = [*(prompt.metadata for prompt in prompts), *(record for _, record in found.missing)]
    reference = f"{len(prompts)} prompts ({digest(wanted)[:12]})"
    if found.missing:
        reference += f", {len(found.missing)} more without pictures counted wrong"
    if any(prompt.rewritten for prompt in prompts):
        reference += ", rewritten"
    settings = [f"{key}={value}" for key, value in dataclasses.asdict(options).items()]
    if colours.name:
        settings.append(f"colours={colours.name}")
    protocol = Protocol("geneval", detector.name, reference=reference, samples=len(records), options=tuple(settings))
    return GenEvalReport(records, summarise(records), protocol, ceiling, _notes(found, records))


def _read_records(path: Path, prompt: PromptFolder) -> list[dict]:
    """The records of a prompt, with its pictures where they lie now: the set may have moved since it was judged."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return [{**record, "filename": str(image)} for record, image in zip(records, prompt.images, strict=True)]


def _identity(
    prompts: Sequence[PromptFolder], detector: Detector, colours: ColourClassifier, options: ScoringOptions
) -> dict:
    """What the records depend on; a picture that was written again makes another job."""
    states = [(path.name, path.stat()) for prompt in prompts for path in prompt.images]
    return {
        "pictures": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
        "prompts": digest([prompt.metadata for prompt in prompts]),
        "detector": detector.name,
        "colours": colours.name,
        "options": dataclasses.asdict(options),
    }


def _wrong_records(found: PromptSet) -> list[dict]:
    """Records of the prompts without pictures: wrong, as often as other prompts have pictures."""
    each = max(len(prompt.images) for prompt in found.prompts)
    return [
        {
            "filename": "",
            "tag": record["tag"],
            "prompt": record["prompt"],
            "correct": False,
            "reason": f"prompt {number:05d} has no picture",
            "metadata": json.dumps(record),
            "details": "{}",
        }
        for number, record in found.missing
        for _ in range(each)
    ]


def _notes(found: PromptSet, records: Sequence[dict]) -> tuple[str, ...]:
    """What the figures do not show: tasks without a prompt, prompts with fewer pictures, files that were not read."""
    notes = [f"left out {part}" for part in found.left_out]
    if absent := [task for task in TASKS if task not in {record["tag"] for record in records}]:
        notes.append(f"no prompt of {', '.join(absent)}: the score is the mean of the other tasks")
    counts = [len(prompt.images) for prompt in found.prompts]
    if fewer := sum(count < max(counts) for count in counts):
        notes.append(f"{fewer} of {len(counts)} prompts have fewer pictures than the others ({max(counts)})")
    return tuple(notes)


def describe(record: dict) -> str:
    """Returns one line about a failed picture."""
    return f'{record["filename"] or "no picture"}: "{record["prompt"]}": {record["reason"]}'.replace("\n", "; ")


def write_report(report: GenEvalReport, out: str | Path) -> None:
    """Writes ``results.jsonl``, ``summary.json``, ``failures.txt`` and, if there are any, ``failures.png``.

    The picture shows the first failures, row by row in the order of their numbers in the text.
    """
    out = Path(out)
    files = {
        "results.jsonl": "".join(to_json(record) + "\n" for record in report.records),
        "summary.json": to_json(
            {
                **report.summary.to_json(),
                "protocol": report.protocol,
                "ceiling": report.ceiling.to_json() if report.ceiling else None,
                "notes": report.notes,
            },
            indent=1,
        ),
        "failures.txt": "".join(f"{i}. {describe(record)}\n" for i, record in enumerate(report.failures, 1)),
    }
    for name, text in files.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    painted = [record["filename"] for record in report.failures if record["filename"]]
    if painted:
        shown = [load_image(name) for name in painted[:GRID_PICTURES]]
        save_image(grid(shown), out / "failures.png")
