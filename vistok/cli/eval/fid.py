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

if TYPE_CHECKING:
    from vistok.eval.protocol import Result


def fid(
    reference: Annotated[Path, typer.Argument(help="Real pictures: folder, .npz batch or .npz statistics.")],
    samples: Annotated[Path, typer.Argument(help="Generated pictures: folder or .npz batch.")],
    metrics: Annotated[str, typer.Option(help="fid, sfid, fid-infinity, kid, is, precision, cmmd; by commas.")] = "fid",
    extractor: Extractor = "inception",
    weights: Weights = None,
    resize: Resize = None,
    precision: Precision = "float32",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    cache: Cache = None,
    kid_subset_size: Annotated[int, typer.Option(min=2, help="Pictures in each subset of KID.")] = 1000,
    is_flavour: Annotated[str, typer.Option(help="torch-fidelity, adm or one-split.")] = "torch-fidelity",
    plot: Annotated[Path | None, typer.Option(help="Draw the distance against 1/N into this file.")] = None,
    json: Json = None,
) -> None:
    """Distances between two sets of pictures. Spread over processes by `accelerate launch -m vistok eval fid ...`.

    Example: vistok eval fid real/ generated/ --weights pt_inception-2015-12-05-6726825d.pth
    """
    from vistok.eval.sets.distribution import Options, check_metrics, evaluate_sets, open_set, resize_of
    from vistok.eval.sets.extractors import load_extractor
    from vistok.eval.sets.features import work_folder
    from vistok.runtime import processes

    names = [name.strip() for name in metrics.split(",")]
    chosen = check_metrics(names, extractor)
    network = load_extractor(extractor, weights, resize_of([reference, samples], resize), precision)
    options = Options(kid_subset_size=kid_subset_size, inception_score_flavour=is_flavour)
    sample_outputs = tuple(dict.fromkeys(output for metric in chosen for output in metric.outputs))
    if plot is not None:
        sample_outputs = tuple(dict.fromkeys((*sample_outputs, "features")))
    # The Inception Score reads nothing of the reference, so it asks for no features of it.
    reference_outputs = tuple(output for output in sample_outputs if output != "logits") or ("features",)
    pictures = any(not metric.from_statistics for metric in chosen)
    extraction = {"batch_size": batch_size, "workers": workers}
    with work_folder(cache, "features") as folder:
        real = open_set(reference, network, folder / "reference", reference_outputs, pictures, **extraction)
        fake = open_set(samples, network, folder / "samples", sample_outputs, True, **extraction)
        if not is_main():
            return
        results = evaluate_sets(real, fake, network, names, options)
        if plot is not None:
            from vistok.eval.plots import plot_frechet_curve

            plot_frechet_curve(real.statistics(), fake.need_shards().load(), plot)
        print_results(results, json)
        for side in (real, fake):
            if side.shards is not None and side.shards.computed:
                mine, world = side.shards.computed, processes().num_processes
                of = f" of {side.shards.count} (one of {world} processes)" if world > 1 else ""
                typer.echo(f"{side.name}: {mine}{of} pictures, {mine / side.shards.seconds:.1f} a second", err=True)


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
    from vistok.eval.protocol import Protocol, Result
    from vistok.eval.sets.extractors import load_extractor
    from vistok.eval.sets.features import extract_features, work_folder
    from vistok.eval.sets.pictures import open_pictures
    from vistok.eval.sets.reference import check_statistics_path, save_statistics

    check_statistics_path(out)
    network = load_extractor(extractor, weights, resize, precision)
    outputs = ("features", "spatial") if extractor == "inception" else ("features",)
    source = open_pictures(pictures)
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
    from vistok.eval.protocol import compare as side_by_side
    from vistok.eval.protocol import read_results

    results = [result for file in files for result in read_results(file)]
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.protocol.metric, []).append(result)
    print_results([result for group in groups.values() for result in side_by_side(group)], json)
