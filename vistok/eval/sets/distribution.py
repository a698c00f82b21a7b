"""From what a user names to values of metrics: two sets of pictures, seen by one network, each with its protocol.

The first set is the reference (real pictures), the second the samples; either may be a folder, an ``.npz`` batch or,
as the reference, ``.npz`` statistics. What cannot be measured is refused before the first picture is read: open both
sides with :func:`open_set`, ask :func:`check_sets`, then :func:`extract` and :func:`evaluate_sets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vistok.errors import VistokError
from vistok.eval.protocol import Protocol, Result
from vistok.eval.sets.extractors import Extractor
from vistok.eval.sets.features import extract_features
from vistok.eval.sets.interface import METRICS, Measurement, Metric, PictureSet
from vistok.eval.sets.pictures import open_pictures
from vistok.eval.sets.reference import load_statistics, npz_keys

NamedMetric = tuple[str, Metric]


def parse_metrics(text: str) -> list[NamedMetric]:
    """Returns the metrics that a text names by commas, each with its options: ``"fid,kid:subset_size=50"``.

    Raises:
        VistokError: an unknown metric or option, a value that the option does not take, or no metric.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise VistokError(f"name a metric: {', '.join(METRICS)}.")
    return [(part.partition(":")[0], METRICS.build(part)) for part in parts]


def check_metrics(metrics: Sequence[NamedMetric], extractor: str) -> None:
    """Raise VistokError if a metric is not defined on the extractor."""
    for name, metric in metrics:
        if metric.extractors and extractor not in metric.extractors:
            raise VistokError(f"{name} is defined on the {metric.extractors[0]} extractor, not on {extractor}.")


def needed_outputs(metrics: Sequence[NamedMetric]) -> tuple[str, ...]:
    """Returns the outputs of the network that metrics read of the samples; none if all look at pixels."""
    return tuple(dict.fromkeys(output for _, metric in metrics for output in metric.outputs))


def resize_of(paths: list[str | Path], wanted: str | None) -> str | None:
    """Returns the resize convention that the given files ask for; None where none of them cares.

    Args:
        paths: folders and ``.npz`` files.
        wanted: what the user asked for, if anything.

    Raises:
        VistokError: if a file was made with another one than wanted or than the other file's, or does not say.
    """
    for path in paths:
        if Path(path).suffix != ".npz" or "mu" not in npz_keys(path):
            continue
        stored = load_statistics(path).resize
        if stored is None and wanted is None:
            raise VistokError(
                f"'{path}' does not say how its pictures were resized: "
                "give --resize pytorch-fid for pytorch-fid's own files, else clean or tf1."
            )
        if stored is not None and wanted is not None and stored != wanted:
            raise VistokError(f"'{path}' was made with the '{stored}' resize, not '{wanted}': use one for both sides.")
        wanted = wanted or stored
    return wanted


def open_set(path: str | Path) -> PictureSet:
    """Returns one side of a comparison; pictures are listed and not read.

    Args:
        path: folder of pictures, ``.npz`` batch, or ``.npz`` statistics.

    Raises:
        VistokError: it is none of these.
    """
    keys = npz_keys(path) if Path(path).suffix == ".npz" else set()
    stored = load_statistics(path) if "mu" in keys else None
    if stored is not None and "arr_0" not in keys:
        count = stored.count if stored.count is not None else "unknown number of"
        return PictureSet(Path(path).name, f"{Path(path).name} ({count} pictures, npz stats {stored.digest})", stored)
    pictures = open_pictures(path)
    origin = f"npz stats {stored.digest}" if stored is not None else pictures.digest
    return PictureSet(pictures.name, f"{pictures.name} ({len(pictures)} pictures, {origin})", stored, pictures)


def check_sets(reference: PictureSet, samples: PictureSet, metrics: Sequence[NamedMetric]) -> None:
    """Refuse what the metrics cannot measure, before a picture is read or a network loaded.

    Raises:
        VistokError: a side lacks pictures or has too few of them.
    """
    samples.need_pictures()
    for _, metric in metrics:
        if not metric.from_statistics:
            reference.need_pictures()
        metric.check(reference, samples)


def check_stored(side: PictureSet, extractor: Extractor) -> None:
    """Refuse stored statistics that another network made, or another precision.

    Raises:
        VistokError: naming both.
    """
    stored = side.stored
    if stored is None:
        return
    seen = (stored.extractor, stored.weights)
    if stored.extractor is not None and seen != (extractor.name, extractor.weights):
        raise VistokError(
            f"'{side.name}' was made with {stored.extractor} ({stored.weights}), "
            f"not with {extractor.name} ({extractor.weights})."
        )
    if stored.precision != extractor.precision:
        raise VistokError(
            f"'{side.name}' was made in {stored.precision}, the samples would be seen in {extractor.precision}: "
            f"give --precision {stored.precision}, or the reference's pictures."
        )


def extract(side: PictureSet, extractor: Extractor, folder: Path, outputs: tuple[str, ...], **extraction) -> PictureSet:
    """Returns the side with the features of its pictures.

    Args:
        side: with pictures.
        extractor: the network.
        folder: where feature shards go.
        outputs: which outputs of the network are kept.
        extraction: further arguments of :func:`~vistok.eval.sets.features.extract_features`.
    """
    shards = extract_features(side.need_pictures(), extractor, folder, outputs=outputs, **extraction)
    return replace(side, shards=shards)


def extract_sets(
    reference: PictureSet,
    samples: PictureSet,
    extractor: Extractor,
    folder: Path,
    metrics: Sequence[NamedMetric],
    more: tuple[str, ...] = (),
    **extraction,
) -> tuple[PictureSet, PictureSet]:
    """Returns both sides with all features that the metrics read, and none besides.

    Args:
        reference, samples: as :func:`open_set` gave them.
        extractor: the network.
        folder: where feature shards go.
        metrics: what will be measured.
        more: further outputs that are kept of both sides.
        extraction: see :func:`extract`.

    Raises:
        VistokError: an unreadable picture, or stored statistics of another network.
    """
    check_stored(reference, extractor)
    check_stored(samples, extractor)
    outputs = tuple(dict.fromkeys((*needed_outputs(metrics), *more)))
    read = [(name, metric) for name, metric in metrics if metric.reads_reference]
    of_reference = tuple(dict.fromkeys((*needed_outputs(read), *more)))
    stored_serves = reference.stored is not None and all(metric.from_statistics for _, metric in read)
    if of_reference and not stored_serves:
        reference = extract(reference, extractor, folder / "reference", of_reference, **extraction)
    return reference, extract(samples, extractor, folder / "samples", outputs, **extraction)


def evaluate_sets(
    reference: PictureSet, samples: PictureSet, extractor: Extractor | None, metrics: Sequence[NamedMetric]
) -> list[Result]:
    """Returns the metrics of samples against a reference.

    Args:
        reference: real pictures.
        samples: generated pictures.
        extractor: the network that both were seen by; None if all metrics look at pixels.
        metrics: as :func:`parse_metrics` gives them.

    Raises:
        VistokError: a side lacks what a metric needs, or what it gives is no figure.
    """
    if extractor is not None:
        check_metrics(metrics, extractor.name)
    results = []
    for name, metric in metrics:
        found = metric.compute(reference, samples)
        if not isinstance(found, Measurement):
            raise VistokError(f"the metric '{name}' gives {type(found).__name__} and no Measurement: mend its compute.")
        seen = {}
        if extractor is not None and metric.outputs:
            names = ("weights", "resize", "normalisation", "precision")
            seen = {"extractor": extractor.name} | {each: getattr(extractor, each) for each in names}
        protocol = Protocol(
            metric=metric.title(name, seen.get("extractor", "")),
            **seen,
            reference=reference.label if metric.reads_reference else "",
            samples=samples.count or 0,
            options=metric.settings(),
        )
        results.append(Result(samples.name, found.value, protocol, found.std, found.details))
    return results
