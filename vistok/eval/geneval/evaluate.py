"""GenEval end to end: pictures and metadata from anywhere in, records, summary and report out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from vistok.data.images import grid, load_image, save_image
from vistok.errors import VistokError
from vistok.eval.geneval.detectors import ColourClassifier, Detector
from vistok.eval.geneval.folder import PromptFolder, read_folders
from vistok.eval.geneval.judge import Options, judge, keep
from vistok.eval.geneval.summary import Summary, summarise
from vistok.eval.protocol import Protocol, Result
from vistok.files import atomic_path
from vistok.jobs import ShardedJob
from vistok.progress import progress
from vistok.runtime import processes

GRID_PICTURES = 64


@dataclass(frozen=True)
class Report:
    """A scored set.

    Args:
        records: one a picture, in the reference's format.
        summary: of the records.
        protocol: detector, thresholds and prompts.
        ceiling: summary of perfect pictures after the tokenizer's reconstruction, where that is known.
    """

    records: list[dict]
    summary: Summary
    protocol: Protocol
    ceiling: Summary | None = None

    @property
    def failures(self) -> list[dict]:
        return [record for record in self.records if not record["correct"]]

    def result(self, name: str) -> Result:
        """The overall score with its protocol."""
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
    options: Options | None = None,
    batch_size: int = 16,
) -> Iterator[dict]:
    """Judge pictures.

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


def evaluate_folder(
    root: str | Path,
    detector: Detector,
    colours: ColourClassifier,
    work: str | Path,
    metadata: str | Path | None = None,
    options: Options | None = None,
    ceiling: Summary | None = None,
) -> Report:
    """Score a set in the published folder layout; resumable, and shared by the processes of ``accelerate launch``.

    Args:
        root: the set.
        detector: finds the objects.
        colours: names their colours.
        work: where the records of each prompt are kept; a later call goes on from them.
        metadata: the metadata file of the set (see :func:`~vistok.eval.geneval.folder.read_folders`).
        options: scoring options; by default the detector's own.
        ceiling: what the tokenizer's reconstruction allows, for the report.

    Raises:
        VistokError: a set that cannot be scored, or a ``work`` folder of another set.
    """
    state = processes()
    options = options or detector.options
    prompts = read_folders(root, metadata)
    check_classes((prompt.metadata for prompt in prompts), detector, colours)
    rewritten = any(prompt.rewritten for prompt in prompts)
    pictures = [[path.name, path.stat().st_size] for prompt in prompts for path in prompt.images]
    wanted = json.dumps([prompt.metadata for prompt in prompts])
    identity = {
        "pictures": pictures,
        "prompts": hashlib.sha256(wanted.encode()).hexdigest(),
        "detector": detector.name,
        "options": dataclasses.asdict(options),
    }
    job = ShardedJob(work, identity, len(prompts), ".json")
    pending = job.pending(state.process_index, state.num_processes)
    with progress("geneval", len(pending)) as advance:
        for shard in pending:
            records = list(score_images(_load([prompts[shard]]), detector, colours, options))
            with atomic_path(job.path(shard)) as temporary:
                temporary.write_text(json.dumps(records))
            advance()
    state.wait_for_everyone()
    job.check_complete()
    records = [record for shard in range(job.shards) for record in json.loads(job.path(shard).read_text())]
    protocol = Protocol(
        metric="geneval",
        extractor=detector.name,
        reference=f"{len(prompts)} prompts" + (", rewritten" if rewritten else ""),
        samples=len(records),
        options=tuple(f"{key}={value}" for key, value in dataclasses.asdict(options).items()),
    )
    return Report(records, summarise(records), protocol, ceiling)


def describe(record: dict) -> str:
    """One line about a failed picture."""
    return f'{record["filename"]}: "{record["prompt"]}": {record["reason"]}'.replace("\n", "; ")


def write_report(report: Report, out: str | Path) -> None:
    """Write ``results.jsonl``, ``summary.json``, ``failures.txt`` and, if there are any, ``failures.png``.

    The picture shows the first failures, row by row in the order of their numbers in the text.
    """
    out = Path(out)
    files = {
        "results.jsonl": "".join(json.dumps(record) + "\n" for record in report.records),
        "summary.json": json.dumps(
            {
                **report.summary.to_json(),
                "protocol": dataclasses.asdict(report.protocol),
                "ceiling": report.ceiling.to_json() if report.ceiling else None,
            },
            indent=1,
        ),
        "failures.txt": "".join(f"{i}. {describe(record)}\n" for i, record in enumerate(report.failures, 1)),
    }
    for name, text in files.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)
    if report.failures:
        shown = [load_image(record["filename"]) for record in report.failures[:GRID_PICTURES]]
        save_image(grid(shown), out / "failures.png")
