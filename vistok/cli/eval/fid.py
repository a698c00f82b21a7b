"""``vistok eval fid``, ``stats`` and ``compare``: distances between sets of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.eval.common import (
    BatchSize,
    Cache,
    Extractor,
    Json,
    Precision,
    Resize,
    Weights,
    Workers,
    is_main,
    print_results,
)
from vistok.cli.shared import refuse_given

if TYPE_CHECKING:
    from vistok.eval.protocol import Result
    from vistok.eval.sets.interface import PictureSet


def measure(
    context: typer.Context,
    reference: Annotated[Path, typer.Argument(help="Real pictures: folder, .npz batch or .npz statistics.")],
    samples: Annotated[Path, typer.Argument(help="Generated pictures: folder or .npz batch.")],
    metrics: Annotated[
        str, typer.Option(help="By commas, with options: fid,kid:subset_size=50; `vistok eval metrics` lists all.")
    ] = "fid",
    extractor: Extractor = "inception",
    weights: Weights = None,
    resize: Resize = None,
    precision: Precision = "float32",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    cache: Cache = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the distance against 1/N into this file.")] = None,
    kid_subset_size: Annotated[int | None, typer.Option(min=2, hidden=True)] = None,
    is_flavour: Annotated[str | None, typer.Option(hidden=True)] = None,
    json: Json = None,
) -> None:
    """Any metric of two sets of pictures. Spread over processes by `torchrun -m vistok eval fid ...`.

    Example: vistok eval fid real/ generated/ --weights pt_inception-2015-12-05-6726825d.pth

    Example: vistok eval measure originals/ reconstructions/ --metrics psnr,ssim
    """
    from vistok.cli.output import check_outputs
    from vistok.data.folders import warn_left_out
    from vistok.eval.plots import check_plot, plot_frechet_curve
    from vistok.eval.sets import distribution
    from vistok.eval.sets.extractors import check_extractor, load_extractor
    from vistok.eval.sets.features import work_folder
    from vistok.eval.sets.frechet import check_curve

    chosen = distribution.parse_metrics(metrics)
    chosen = _with_option(chosen, "kid", "subset_size", "--kid-subset-size", kid_subset_size)
    chosen = _with_option(chosen, "is", "flavour", "--is-flavour", is_flavour)
    check_outputs(plot, json)
    check_plot(plot)
    drawn = ("features",) if plot is not None else ()
    seen = bool(distribution.needed_outputs(chosen) or drawn)
    if seen:
        check_extractor(extractor)
        distribution.check_metrics(chosen, extractor)
    else:
        unread = ("extractor", "weights", "resize", "precision", "cache")
        refuse_given(context, "is about a network, and none of these metrics needs one", *unread)
    sides = [distribution.open_set(path) for path in (reference, samples)]
    for side in sides:
        if side.pictures is not None:
            warn_left_out(side.name, side.pictures.left_out)
    distribution.check_sets(*sides, chosen)
    if plot is not None:
        check_curve(sides[1])
    if not seen:
        print_results(distribution.evaluate_sets(*sides, None, chosen), json)
        return
    network = load_extractor(extractor, weights, distribution.resize_of([reference, samples], resize), precision)
    extraction = {"more": drawn, "batch_size": batch_size, "workers": workers}
    with work_folder(cache, "features") as folder:
        sides = distribution.extract_sets(*sides, network, folder, chosen, **extraction)
        if not is_main():
            return
        print_results(distribution.evaluate_sets(*sides, network, chosen), json)
        _tell_speed(*sides)
        if plot is not None:
            real, fake = sides
            plot_frechet_curve(real.statistics(), fake.need_shards().load(), plot)


def _with_option(chosen: list, metric: str, option: str, old: str, value: object) -> list:
    """The metrics with an option of one of them, which used to be an option of the command."""
    import dataclasses

    if value is None:
        return chosen
    typer.echo(f"vistok: {old} is now part of the metric's name: --metrics {metric}:{option}={value}", err=True)
    return [(name, dataclasses.replace(m, **{option: value}) if name == metric else m) for name, m in chosen]


def _tell_speed(*sides: PictureSet) -> None:
    from vistok.runtime import processes

    for side in sides:
        if side.shards is not None and side.shards.computed:
            mine, world = side.shards.computed, processes().num_processes
            of = f" of {side.shards.count} (one of {world} processes)" if world > 1 else ""
            typer.echo(f"{side.name}: {mine}{of} pictures, {mine / side.shards.seconds:.1f} a second", err=True)


def metrics(json: Json = None) -> None:
    """The metrics that `vistok eval measure` knows, with their options and defaults.

    Example: vistok eval metrics
    """
    from vistok.cli.output import check_outputs, output_json, print_table
    from vistok.eval.sets.interface import METRICS

    check_outputs(json)
    entries = []
    for name, kind in METRICS.usable().items():
        options = {option: known.default for option, known in METRICS.options(name).items()}
        extractors = "pixels" if not kind.outputs else ", ".join(kind.extractors) or "any"
        entries.append({"name": name, "extractors": extractors, "options": options})
    if output_json(entries, json):
        return
    rows = [(e["name"], e["extractors"], " ".join(f"{k}={v}" for k, v in e["options"].items())) for e in entries]
    print_table(("metric", "seen by", "options and their defaults"), rows)


def stats(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures or .npz batch.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npz to write; pytorch-fid and clean-fid read it too.")],
    extractor: Extractor = "inception",
    weights: Weights = None,
    resize: Resize = None,
    precision: Precision = "float32",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    cache: Cache = None,
    json: Json = None,
) -> None:
    """Mean and covariance of the features of a set of pictures, for later use as a reference.

    Example: vistok eval stats imagenet-val/ -o imagenet-val.npz --weights pt_inception-...pth
    """
    from vistok.cli.output import check_outputs
    from vistok.data.folders import warn_left_out
    from vistok.errors import VistokError
    from vistok.eval.protocol import Protocol, Result
    from vistok.eval.sets.extractors import load_extractor
    from vistok.eval.sets.features import extract_features, work_folder
    from vistok.eval.sets.pictures import open_pictures
    from vistok.eval.sets.reference import check_statistics_path, save_statistics

    check_statistics_path(out)
    check_outputs(json)
    source = open_pictures(pictures)
    warn_left_out(source.name, source.left_out)
    if len(source) < 2:
        raise VistokError(f"statistics need at least 2 pictures, and '{pictures}' has {len(source)}.")
    network = load_extractor(extractor, weights, resize, precision)
    outputs = ("features", "spatial") if extractor == "inception" else ("features",)
    with work_folder(cache, "features") as folder:
        shards = extract_features(source, network, folder / "pictures", batch_size, workers=workers, outputs=outputs)
        if not is_main():
            return
        features, *rest = (shards.statistics(output) for output in outputs)
        save_statistics(out, features, network.name, network.weights, network.resize, *rest, precision=precision)
    seen_by = (network.name, network.weights, network.resize, network.normalisation, precision)
    protocol = Protocol("statistics", *seen_by, samples=len(source))
    trace = features.covariance.trace().item()
    print_results(
        [Result(str(out), trace, protocol, details={"dimensions": features.dim})], json, "trace of the covariance"
    )


def compare(
    files: Annotated[list[Path], typer.Argument(help="Files that --json wrote.")],
    json: Json = None,
) -> None:
    """Results side by side, if they were measured with one protocol; refused otherwise.

    Example: vistok eval compare a.json b.json
    """
    from vistok.cli.output import check_outputs
    from vistok.eval.protocol import compare as side_by_side
    from vistok.eval.protocol import read_results

    check_outputs(json)
    results = [result for file in files for result in read_results(file)]
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.protocol.metric, []).append(result)
    print_results([result for group in groups.values() for result in side_by_side(group)], json)
