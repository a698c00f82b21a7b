"""Distances between two sets of pictures: FID and its kin, each with its protocol.

The first set is the reference (real pictures), the second the samples; either may be a folder, an ``.npz`` batch or,
as the reference, ``.npz`` statistics. The Frechet distance is called ``fid`` only on the Inception network; on others
it is ``fd-dinov2``, ``fd-clip`` or ``fd-scenes-features``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vistok.errors import VistokError, unknown_name
from vistok.eval.protocol import Protocol, Result
from vistok.eval.sets.extractors import Extractor
from vistok.eval.sets.features import FeatureShards, extract_features
from vistok.eval.sets.frechet import frechet_curve, frechet_distance, frechet_distance_infinity
from vistok.eval.sets.inception_score import inception_score
from vistok.eval.sets.kernel import cmmd, kernel_distance
from vistok.eval.sets.manifold import manifold_metrics
from vistok.eval.sets.pictures import open_pictures
from vistok.eval.sets.reference import StoredStatistics, load_statistics, npz_keys
from vistok.eval.sets.statistics import FeatureStatistics


@dataclass(frozen=True)
class PictureSet:
    """One side of a comparison: stored statistics, features, or both.

    Args:
        name: of the folder or file.
        label: name, number of pictures and digest, for the protocol.
        stored: statistics from a file; they take precedence over computed ones.
        shards: features of the pictures.
    """

    name: str
    label: str
    stored: StoredStatistics | None = None
    shards: FeatureShards | None = None

    def statistics(self, output: str = "features") -> FeatureStatistics:
        if self.stored is not None:
            chosen = self.stored.features if output == "features" else self.stored.spatial
            if chosen is None:
                raise VistokError(f"'{self.name}' holds no statistics of spatial features, which sFID needs.")
            return chosen
        return self.need_shards().statistics(output)

    def need_shards(self) -> FeatureShards:
        if self.shards is None:
            raise VistokError(
                f"'{self.name}' holds statistics only, and this metric needs pictures: give a folder or an .npz batch."
            )
        return self.shards


@dataclass(frozen=True)
class Options:
    """Settings of the metrics; each metric's protocol holds those that it uses."""

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    inception_score_flavour: str = "torch-fidelity"


@dataclass(frozen=True)
class Metric:
    """How one metric is computed.

    Args:
        compute: (reference, samples, options) -> value, spread, details.
        outputs: what it reads of the network's outputs.
        from_statistics: whether the reference may be statistics alone.
        options: names of the options that its value depends on.
        extractors: networks on which it is defined; empty for any.
    """

    compute: Callable[[PictureSet, PictureSet, Options], tuple[float, float | None, dict[str, float]]]
    outputs: tuple[str, ...] = ("features",)
    from_statistics: bool = False
    options: tuple[str, ...] = ()
    extractors: tuple[str, ...] = ()


def _fid(a: PictureSet, b: PictureSet, _: Options):
    return frechet_distance(a.statistics(), b.statistics()), None, {}


def _sfid(a: PictureSet, b: PictureSet, _: Options):
    return frechet_distance(a.statistics("spatial"), b.statistics("spatial")), None, {}


def _fid_infinity(a: PictureSet, b: PictureSet, _: Options):
    return frechet_distance_infinity(*frechet_curve(a.statistics(), b.need_shards().load())), None, {}


def _kid(a: PictureSet, b: PictureSet, options: Options):
    features = (side.need_shards().load() for side in (a, b))
    value = kernel_distance(*features, options.kid_subsets, options.kid_subset_size)
    return value.mean, value.std, {}


def _inception_score(_a: PictureSet, b: PictureSet, options: Options):
    value = inception_score(b.need_shards().load("logits"), options.inception_score_flavour)
    return value.mean, value.std, {}


def _precision(a: PictureSet, b: PictureSet, options: Options):
    found = manifold_metrics(*(side.need_shards().load() for side in (a, b)), k=options.neighbours)
    details = {"recall": found.recall, "density": found.density, "coverage": found.coverage}
    return found.precision, None, details


def _cmmd(a: PictureSet, b: PictureSet, _: Options):
    return cmmd(a.need_shards().load(), b.need_shards().load()), None, {}


METRICS: dict[str, Metric] = {
    "fid": Metric(_fid, from_statistics=True),
    "sfid": Metric(_sfid, outputs=("spatial",), from_statistics=True, extractors=("inception",)),
    "fid-infinity": Metric(_fid_infinity, from_statistics=True),
    "kid": Metric(_kid, options=("kid_subsets", "kid_subset_size")),
    "is": Metric(_inception_score, ("logits",), True, options=("inception_score_flavour",), extractors=("inception",)),
    "precision": Metric(_precision, options=("neighbours",)),
    "cmmd": Metric(_cmmd, extractors=("clip",)),
}


def check_metrics(names: list[str], extractor: str) -> list[Metric]:
    """The metrics of those names.

    Raises:
        VistokError: an unknown name, or a metric that is not defined on the extractor.
    """
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, list(METRICS))
        allowed = METRICS[name].extractors
        if allowed and extractor not in allowed:
            raise VistokError(f"{name} is defined on the {allowed[0]} extractor, not on {extractor}.")
    return [METRICS[name] for name in names]


def metric_name(metric: str, extractor: str) -> str:
    """What reports call a metric: only the Inception network's Frechet distance is FID."""
    if extractor == "inception" or not metric.startswith("fid"):
        return metric
    return f"fd-{extractor}{metric.removeprefix('fid')}"


def resize_of(paths: list[str | Path], wanted: str | None) -> str | None:
    """The resize convention that the given files ask for; None where none of them cares.

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


def open_set(
    path: str | Path, extractor: Extractor, folder: Path, outputs: tuple[str, ...], pictures: bool, **extraction
) -> PictureSet:
    """Statistics or features of one side.

    Args:
        path: folder of pictures, ``.npz`` batch, or ``.npz`` statistics.
        extractor: the network.
        folder: where feature shards go.
        outputs: outputs of the network that the metrics need.
        pictures: whether stored statistics are not enough.
        extraction: further arguments of :func:`~vistok.eval.sets.features.extract_features`.

    Raises:
        VistokError: unreadable, or made with another network.
    """
    keys = npz_keys(path) if Path(path).suffix == ".npz" else set()
    stored = load_statistics(path) if "mu" in keys else None
    if stored is not None:
        seen = (stored.extractor, stored.weights)
        if stored.extractor is not None and seen != (extractor.name, extractor.weights):
            raise VistokError(
                f"'{path}' was made with {stored.extractor} ({stored.weights}), "
                f"not with {extractor.name} ({extractor.weights})."
            )
        if stored.precision != extractor.precision:
            raise VistokError(
                f"'{path}' was made in {stored.precision}, the samples would be seen in {extractor.precision}: "
                f"give --precision {stored.precision}, or the reference's pictures."
            )
        if not pictures or "arr_0" not in keys:
            count = stored.count if stored.count is not None else "unknown number of"
            return PictureSet(
                Path(path).name, f"{Path(path).name} ({count} pictures, npz stats {stored.digest})", stored
            )
    source = open_pictures(path)
    shards = extract_features(source, extractor, folder, outputs=outputs, **extraction)
    origin = f"npz stats {stored.digest}" if stored is not None else source.digest
    return PictureSet(source.name, f"{source.name} ({len(source)} pictures, {origin})", stored, shards)


def evaluate_sets(
    reference: PictureSet, samples: PictureSet, extractor: Extractor, names: list[str], options: Options | None = None
) -> list[Result]:
    """The metrics of samples against a reference.

    Args:
        reference: real pictures.
        samples: generated pictures.
        extractor: the network that both were seen by.
        names: names in :data:`METRICS`.
        options: settings of the metrics.

    Raises:
        VistokError: an unknown metric, or a side that lacks what a metric needs.
    """
    options = options or Options()
    results = []
    count = samples.shards.count if samples.shards is not None else samples.stored.count or 0
    for name, metric in zip(names, check_metrics(names, extractor.name), strict=True):
        value, std, details = metric.compute(reference, samples, options)
        protocol = Protocol(
            metric=metric_name(name, extractor.name),
            extractor=extractor.name,
            weights=extractor.weights,
            resize=extractor.resize,
            normalisation=extractor.normalisation,
            precision=extractor.precision,
            reference="" if name == "is" else reference.label,
            samples=count,
            options=tuple(f"{option}={getattr(options, option)}" for option in metric.options),
        )
        results.append(Result(samples.name, value, protocol, std, details))
    return results
