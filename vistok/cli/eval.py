"""``vistok eval``: thin commands over :mod:`vistok.eval`; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vistok.eval.protocol import Result

app = typer.Typer(help="Score pictures, reconstructions and answers.", no_args_is_help=True)

Json = Annotated[Path | None, typer.Option("--json", help="Write the results to this file as JSON; - prints them.")]
Extractor = Annotated[str, typer.Option(help="inception, dinov2, clip or scenes-features.")]
Weights = Annotated[str | None, typer.Option(help="The network's weights: a path; for dinov2 and clip also a hub id.")]
Resize = Annotated[
    str | None, typer.Option(help="clean, tf1, pytorch-fid or torchmetrics; by default what the .npz says, else clean.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures a forward pass.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")]
Cache = Annotated[
    Path | None, typer.Option(help="Keep features here; the same command goes on from them after an interruption.")
]


def _is_main() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _report(results: list[Result], json: Path | None, title: str = "") -> None:
    """Print the results as a table and write them, once for all processes."""
    from vistok.eval.protocol import write_results

    if not _is_main():
        return
    if json is not None:
        write_results(json, results)
    if str(json) == "-":
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "metric", "value", title=title or None)
    for result in results:
        value = f"{result.value:.4f}" + (f" ± {result.std:.4f}" if result.std is not None else "")
        table.add_row(result.name, result.protocol.metric, value)
        for key, figure in result.details.items():
            table.add_row("", key, f"{figure:.4f}")
    console = Console()
    console.print(table)
    protocol = results[0].protocol
    parts = (protocol.extractor, protocol.weights, protocol.resize, protocol.normalisation, protocol.reference)
    console.print("protocol: " + ", ".join(part for part in parts if part) + f", {protocol.samples} samples")


@app.command(epilog="Example: vistok eval fid real/ generated/ --weights pt_inception-2015-12-05-6726825d.pth")
def fid(
    reference: Annotated[Path, typer.Argument(help="Real pictures: folder, .npz batch or .npz statistics.")],
    samples: Annotated[Path, typer.Argument(help="Generated pictures: folder or .npz batch.")],
    metrics: Annotated[str, typer.Option(help="fid, sfid, fid-infinity, kid, is, precision, cmmd; by commas.")] = "fid",
    extractor: Extractor = "inception",
    weights: Weights = None,
    resize: Resize = None,
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    cache: Cache = None,
    kid_subset_size: Annotated[int, typer.Option(min=2, help="Pictures in each subset of KID.")] = 1000,
    is_flavour: Annotated[str, typer.Option(help="torch-fidelity, adm or one-split.")] = "torch-fidelity",
    plot: Annotated[Path | None, typer.Option(help="Draw the distance against 1/N into this file.")] = None,
    json: Json = None,
) -> None:
    """Distances between two sets of pictures. Spread over processes by `accelerate launch -m vistok eval fid ...`."""
    from vistok.eval.distribution import Options, check_metrics, evaluate_sets, open_set, resize_of
    from vistok.eval.extractors import load_extractor
    from vistok.eval.features import work_folder

    names = [name.strip() for name in metrics.split(",")]
    chosen = check_metrics(names, extractor)
    network = load_extractor(extractor, weights, resize_of([reference, samples], resize))
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
        if not _is_main():
            return
        results = evaluate_sets(real, fake, network, names, options)
        if plot is not None:
            from vistok.eval.plots import plot_frechet_curve

            plot_frechet_curve(real.statistics(), fake.need_shards().load(), plot)
        _report(results, json)
        for side in (real, fake):
            if side.shards is not None and side.shards.computed:
                rate = side.shards.computed / side.shards.seconds
                typer.echo(f"{side.name}: {side.shards.computed} pictures, {rate:.1f} a second", err=True)


@app.command(epilog="Example: vistok eval stats imagenet-val/ -o imagenet-val.npz --weights pt_inception-...pth")
def stats(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures or .npz batch.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npz to write; pytorch-fid and clean-fid read it too.")],
    extractor: Extractor = "inception",
    weights: Weights = None,
    resize: Resize = None,
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    cache: Cache = None,
    json: Json = None,
) -> None:
    """Mean and covariance of the features of a set of pictures, for later use as a reference."""
    from vistok.eval.extractors import load_extractor
    from vistok.eval.features import extract_features, work_folder
    from vistok.eval.pictures import open_pictures
    from vistok.eval.protocol import Protocol, Result
    from vistok.eval.reference import check_statistics_path, save_statistics

    check_statistics_path(out)
    network = load_extractor(extractor, weights, resize)
    outputs = ("features", "spatial") if extractor == "inception" else ("features",)
    source = open_pictures(pictures)
    with work_folder(cache, "features") as folder:
        shards = extract_features(source, network, folder / "pictures", batch_size, workers=workers, outputs=outputs)
        if not _is_main():
            return
        features, *rest = (shards.statistics(output) for output in outputs)
        save_statistics(out, features, network.name, network.weights, network.resize, *rest)
    protocol = Protocol(
        "statistics", network.name, network.weights, network.resize, network.normalisation, samples=len(source)
    )
    trace = features.covariance.trace().item()
    _report([Result(str(out), trace, protocol, details={"dimensions": features.dim})], json, "trace of the covariance")


@app.command(
    epilog="Example: vistok eval geneval --model llamagen --out geneval/, or "
    "vistok eval geneval --images out/ --metadata evaluation_metadata.jsonl --detector mask2former/ --clip clip/"
)
def geneval(
    images: Annotated[
        Path | None, typer.Option(help="Pictures that exist, as 00000/samples/0000.png, with 00000/metadata.jsonl.")
    ] = None,
    metadata: Annotated[Path | None, typer.Option(help="The metadata file that the pictures are made from.")] = None,
    model: Annotated[str | None, typer.Option(help="Paint the pictures with this model, into OUT/images.")] = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="With --model: pictures of each prompt.")] = 4,
    per_task: Annotated[int, typer.Option(min=1, help="With --model and no metadata: prompts of each task.")] = 100,
    cfg: Annotated[float, typer.Option(help="With --model: scale of guidance.")] = 3.0,
    sampler: Annotated[str, typer.Option(help="With --model: how tokens are drawn.")] = "ar",
    seed: Annotated[int, typer.Option(help="With --model: of prompts and pictures.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="With --model: pictures at a time.")] = 32,
    detector: Annotated[str, typer.Option(help="scenes, or a Mask2Former by folder or hub id.")] = "scenes",
    clip: Annotated[str | None, typer.Option(help="CLIP by folder or hub id, for the colours of Mask2Former.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report and of the resumable records.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Instead of the detector's own.")] = None,
    counting_threshold: Annotated[float | None, typer.Option(help="Instead of the detector's own.")] = None,
    ceiling: Annotated[Path | None, typer.Option(help="summary.json of the tokenizer's reconstructions.")] = None,
    json: Json = None,
) -> None:
    """GenEval: six tasks, every failure with its reason and a picture of them; of pictures that exist, or of a model.

    With `--model`, pictures that are already in OUT/images are not painted again. On the embedded world the report also
    gives the ceiling that the tokenizer's reconstruction sets.
    """
    import dataclasses
    import tempfile
    from contextlib import nullcontext

    from vistok.errors import VistokError
    from vistok.eval.geneval.evaluate import evaluate_folder, write_report
    from vistok.eval.geneval.load import load_detector
    from vistok.eval.geneval.summary import read_summary

    if (model is None) == (images is None) or (model is not None and out is None):
        raise VistokError("name pictures with --images, or a model with --model and a folder for it with --out.")
    finder, colours = load_detector(detector, clip)
    given = {"threshold": threshold, "counting_threshold": counting_threshold}
    options = dataclasses.replace(finder.options, **{k: v for k, v in given.items() if v is not None})
    best = read_summary(ceiling) if ceiling is not None else None
    if model is not None:
        from vistok.eval.geneval.paint import paint_for_eval

        images = out / "images"
        best = paint_for_eval(
            images, model, metadata, per_prompt, per_task, cfg, sampler, seed, batch_size, detector == "scenes"
        )
    with nullcontext(str(out / "records")) if out else tempfile.TemporaryDirectory(prefix="vistok-") as work:
        report = evaluate_folder(images, finder, colours, work, metadata, options, best)
    if not _is_main():
        return
    if out is not None:
        write_report(report, out)
    _report([report.result(images.name)], json)
    if str(json) != "-":
        print_geneval(report)


def print_geneval(report) -> None:
    """Task table, ceiling and the first failures of a GenEval report."""
    from rich.console import Console
    from rich.table import Table

    from vistok.eval.geneval.evaluate import describe

    table = Table("task", "right", "95 %", "pictures", *(["ceiling"] if report.ceiling else []))
    for task, score in report.summary.tasks.items():
        row = [task, f"{score.accuracy:.3f}", f"{score.low:.3f} to {score.high:.3f}", str(score.images)]
        best = report.ceiling.tasks.get(task) if report.ceiling else None
        table.add_row(*row, *([f"{best.accuracy:.3f}"] if best else []))
    console = Console()
    console.print(table)
    for record in report.failures[:20]:
        console.print(describe(record), style="dim", markup=False, highlight=False)
    if len(report.failures) > 20:
        console.print(f"and {len(report.failures) - 20} more failures; --out FOLDER writes them all.")


@app.command(
    epilog="Example: vistok eval clipscore --images out/ --captions captions.jsonl --clip openai/clip-vit-base-patch32"
)
def clipscore(
    images: Annotated[Path, typer.Option(help="Folder of pictures, or a set in GenEval's layout.")],
    clip: Annotated[str, typer.Option(help="CLIP by folder or hub id.")],
    captions: Annotated[Path | None, typer.Option(help='JSONL of {"image": ..., "caption": ...}.')] = None,
    weight: Annotated[float, typer.Option(help="2.5 for CLIPScore, 1 for the plain cosine.")] = 2.5,
    prefix: Annotated[str, typer.Option(help="Put before every caption.")] = "A photo depicts ",
    batch_size: BatchSize = 32,
    json: Json = None,
) -> None:
    """How well pictures fit their captions."""
    import torch
    from accelerate import PartialState

    from vistok.data.images import load_image
    from vistok.eval.captions import read_captions
    from vistok.eval.clip_score import ClipModel, clip_scores
    from vistok.eval.protocol import Protocol, Result

    pictures = read_captions(images, captions)
    model = ClipModel(clip, PartialState().device)
    scores = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        loaded = [load_image(picture.path) for picture in batch]
        scores.append(clip_scores(model, loaded, [picture.caption for picture in batch], prefix, weight))
    values = torch.cat(scores)
    protocol = Protocol(
        "clipscore", "clip", model.digest, "pil", "clip", samples=len(values), options=(f"{weight=}", f"{prefix=}")
    )
    _report([Result(images.name, values.mean().item(), protocol, values.std(correction=0).item())], json)


@app.command(epilog="Example: vistok eval reconstruction originals/ reconstructions/ --convention llamagen")
def reconstruction(
    originals: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    outputs: Annotated[Path, typer.Argument(help="Folder of their reconstructions, in the same order of names.")],
    convention: Annotated[str, typer.Option(help="default, or llamagen to reproduce its tables.")] = "default",
    lpips: Annotated[str | None, typer.Option(help="alex, vgg or squeeze; needs the two files below.")] = None,
    lpips_head: Annotated[Path | None, typer.Option(help="alex.pth, vgg.pth or squeeze.pth of LPIPS v0.1.")] = None,
    lpips_backbone: Annotated[Path | None, typer.Option(help="torchvision's weights of that network.")] = None,
    json: Json = None,
) -> None:
    """PSNR, SSIM and LPIPS of reconstructions."""
    from vistok.eval.lpips import Lpips
    from vistok.eval.pictures import FolderPictures
    from vistok.eval.reconstruction import compare_pictures

    metric = Lpips.from_files(lpips, lpips_head, lpips_backbone) if lpips else None
    sources = FolderPictures(originals), FolderPictures(outputs)
    _report(compare_pictures(*sources, convention, metric), json)


@app.command(epilog="Example: vistok eval answers predictions.jsonl --benchmark pope")
def answers(
    predictions: Annotated[Path, typer.Argument(help='JSONL of {"prediction": ..., "answers": [...]}.')],
    benchmark: Annotated[str, typer.Option(help="textvqa, vqav2, exact, docvqa (ANLS), choice, pope or mme.")],
    json: Json = None,
) -> None:
    """Score answers of a multimodal model."""
    from vistok.eval.benchmarks import score_answers
    from vistok.eval.protocol import Protocol, Result

    figures = score_answers(predictions, benchmark)
    (headline, value), *_ = figures.items()
    lines = sum(1 for line in predictions.read_text().splitlines() if line.strip())
    protocol = Protocol(f"{benchmark} {headline}", samples=lines)
    details = {key: figure for key, figure in figures.items() if key != headline}
    _report([Result(predictions.name, value, protocol, details=details)], json)


@app.command(epilog="Example: vistok eval compare a.json b.json")
def compare(
    files: Annotated[list[Path], typer.Argument(help="Files that --json wrote.")],
    json: Json = None,
) -> None:
    """Results side by side, if they were measured with one protocol; refused otherwise."""
    from vistok.eval.protocol import compare as side_by_side
    from vistok.eval.protocol import read_results

    results = [result for file in files for result in read_results(file)]
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.protocol.metric, []).append(result)
    _report([result for group in groups.values() for result in side_by_side(group)], json)
