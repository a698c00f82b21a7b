"""The tab *Compare*: how far two folders of pictures are from each other, and what they score on GenEval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vistok.data.images import ImageFolder, center_crop, grid, load_image
from vistok.errors import VistokError
from vistok.eval.geneval.evaluate import check_classes, evaluate_folder
from vistok.eval.geneval.folder import read_set
from vistok.eval.geneval.load import load_detector
from vistok.eval.geneval.summary import GenEvalSummary
from vistok.eval.protocol import Result
from vistok.eval.sets import distribution
from vistok.eval.sets.extractors import load_extractor
from vistok.eval.sets.features import work_folder
from vistok.studio import html

METRICS = "fid"
SHOWN, SIDE = 16, 64  # pictures of a folder, and their side in pixels


@dataclass(frozen=True)
class Compared:
    """Two folders of pictures.

    Attributes:
        names, counts, sheets: of both: name, number of pictures, and some of them.
        results: distances of the second to the first.
        geneval: of both; None of a folder that is no GenEval set of scenes.
    """

    names: tuple[str, str]
    counts: tuple[int, int]
    sheets: tuple[Image.Image, Image.Image]
    results: Sequence[Result]
    geneval: tuple[GenEvalSummary | None, GenEvalSummary | None]


def folder_of(text: str, what: str) -> Path:
    """Returns the folder that a text names.

    Raises:
        VistokError: it names none.
    """
    text = (text or "").strip()
    if not text:
        raise VistokError(
            f"{what} is empty: give the path of a folder of pictures, as `vistok sample --out FOLDER` makes."
        )
    path = Path(text).expanduser()
    if not path.is_dir():
        raise VistokError(f"there is no folder '{text}': check the path.")
    return path


def compare(reference: str, samples: str, extractor: str = "scenes-features") -> Compared:
    """Measures the distance of a folder of pictures to another, and both on GenEval where they are such sets.

    Args:
        reference, samples: their paths.
        extractor: an embedded one.

    Raises:
        VistokError: a folder is absent or has too few pictures.
    """
    folders = folder_of(reference, "the reference"), folder_of(samples, "the folder to compare")
    metrics = distribution.parse_metrics(METRICS)
    distribution.check_metrics(metrics, extractor)
    first, second = (distribution.open_set(folder) for folder in folders)
    distribution.check_sets(first, second, metrics)
    network = load_extractor(extractor, None, None, "float32")
    with work_folder(None, "features") as work:
        extracted = distribution.extract_sets(first, second, network, work, metrics, workers=0)
        results = distribution.evaluate_sets(*extracted, network, metrics)
    return Compared(
        (folders[0].name, folders[1].name),
        (len(first.need_pictures()), len(second.need_pictures())),
        (_sheet(folders[0]), _sheet(folders[1])),
        results,
        (_geneval(folders[0]), _geneval(folders[1])),
    )


def _sheet(folder: Path) -> Image.Image:
    paths = ImageFolder(folder).paths[:SHOWN]
    return grid([center_crop(load_image(path), SIDE) for path in paths], columns=4)


def _geneval(folder: Path) -> GenEvalSummary | None:
    detector, colours = load_detector("scenes")
    try:
        check_classes((prompt.metadata for prompt in read_set(folder).prompts), detector, colours)
    except VistokError:
        return None
    with work_folder(None, "records") as work:
        return evaluate_folder(folder, detector, colours, work).summary


def compared_html(found: Compared) -> str:
    """Returns some pictures of both folders, their distances and scores."""
    shots = (
        html.figure(html.img(sheet, f"pictures of {name}", smooth=True), name, f"{count} pictures")
        for name, count, sheet in zip(found.names, found.counts, found.sheets, strict=True)
    )
    figures = html.chips([(f"{result.value:.3f}", result.protocol.metric) for result in found.results])
    return html.row(*shots) + figures + _scores(found)


def _scores(found: Compared) -> str:
    if found.geneval == (None, None):
        return html.note(
            "Neither folder is a GenEval set of scenes: `vistok eval geneval --model llamagen --out FOLDER` makes one "
            "in FOLDER/images."
        )
    tasks = list(dict.fromkeys(task for score in found.geneval if score is not None for task in score.tasks))
    rows = [[task, *(_score(score, task) for score in found.geneval)] for task in tasks]
    rows.append(["all tasks", *("-" if score is None else f"{score.overall:.3f}" for score in found.geneval)])
    return html.table(("GenEval", *found.names), rows, "Share of pictures that show what their prompts ask for")


def _score(summary: GenEvalSummary | None, task: str) -> str:
    if summary is None or task not in summary.tasks:
        return "-"
    score = summary.tasks[task]
    return f"{score.accuracy:.3f} ({score.images})"
