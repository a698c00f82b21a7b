"""``vistok eval geneval`` and ``clipscore``: do pictures show what their prompts ask for?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.eval.common import BatchSize, Json, is_main, print_results
from vistok.cli.shared import refuse_given

if TYPE_CHECKING:
    from vistok.eval.geneval.summary import GenEvalSummary


def geneval(
    context: typer.Context,
    images: Annotated[
        Path | None, typer.Option(help="Pictures that exist, as 00000/samples/0000.png, with 00000/metadata.jsonl.")
    ] = None,
    metadata: Annotated[Path | None, typer.Option(help="The metadata file that the pictures are made from.")] = None,
    model: Annotated[str | None, typer.Option(help="Paint the pictures with this model, into OUT/images.")] = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="With --model: pictures of each prompt.")] = 4,
    per_task: Annotated[int, typer.Option(min=1, help="With --model and no metadata: prompts of each task.")] = 100,
    cfg: Annotated[
        float | None, typer.Option(help="With --model: scale of guidance. [default: the model's own]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="With --model: divides the logits. [default: the model's own]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="With --model: keep the k most likely codes. [default: all]")
    ] = None,
    top_p: Annotated[float, typer.Option(help="With --model: keep the smallest set of this probability.")] = 1.0,
    sampler: Annotated[
        str | None, typer.Option(help="With --model: how tokens are drawn. [default: the model's plain one]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="With --model: stop after so many tokens, where they run coarse to fine.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --model: of prompts and pictures.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="With --model: pictures at a time.")] = 32,
    detector: Annotated[str, typer.Option(help="scenes, or a Mask2Former by folder or hub id.")] = "scenes",
    clip: Annotated[str | None, typer.Option(help="CLIP by folder or hub id, for the colours of Mask2Former.")] = None,
    background: Annotated[str, typer.Option(help="What CLIP sees behind an object: grey, or original.")] = "grey",
    missing_wrong: Annotated[
        bool,
        typer.Option("--missing-wrong", help="Count prompts without pictures as wrong instead of refusing the set."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the report and of the resumable records.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Instead of the detector's own.")] = None,
    counting_threshold: Annotated[float | None, typer.Option(help="Instead of the detector's own.")] = None,
    ceiling: Annotated[Path | None, typer.Option(help="summary.json of the tokenizer's reconstructions.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="With --images on scenes: whose reconstructions set the ceiling.")
    ] = "vq-mini",
    json: Json = None,
) -> None:
    """GenEval: six tasks, every failure with its reason and a picture of them; of pictures that exist, or of a model.

    With `--model`, pictures that are already in OUT/images are not painted again. On the embedded world the report also
    gives the ceiling that the tokenizer's reconstruction sets.

    Example: vistok eval geneval --model llamagen --out geneval/

    Example: vistok eval geneval --images out/ --metadata evaluation_metadata.jsonl --detector mask2former/ --clip clip/
    """
    import dataclasses

    from vistok.cli.output import check_outputs
    from vistok.errors import VistokError
    from vistok.eval.geneval.evaluate import evaluate_folder, refuse_missing, write_report
    from vistok.eval.geneval.folder import read_set
    from vistok.eval.geneval.load import load_detector
    from vistok.eval.geneval.summary import read_summary
    from vistok.eval.sets.features import work_folder
    from vistok.files import check_writable

    if (model is None) == (images is None) or (model is not None and out is None):
        raise VistokError("name pictures with --images, or a model with --model and a folder for it with --out.")
    _refuse_unread(context, images, metadata, detector, ceiling)
    check_outputs(json)
    if out is not None:
        check_writable(out, folder=True)
    if images is not None:
        refuse_missing(read_set(images, metadata), missing_wrong)  # told before the networks are loaded
    finder, colours = load_detector(detector, clip, background)
    given = {"threshold": threshold, "counting_threshold": counting_threshold}
    options = dataclasses.replace(finder.options, **{k: v for k, v in given.items() if v is not None})
    best = read_summary(ceiling) if ceiling is not None else None
    if model is None and detector == "scenes" and best is None and is_main():
        best = tokenizer_ceiling(tokenizer)
    if model is not None:
        from vistok.eval.geneval.paint import paint_for_eval
        from vistok.pipelines import pipeline

        images = out / "images"
        measure = detector == "scenes" and best is None
        params = {"guidance": cfg, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
        asked = (metadata, per_prompt, per_task, params, sampler, seed, batch_size, measure)
        best = paint_for_eval(images, pipeline(model, tokens=tokens), *asked) or best
    with work_folder(out, "records") as work:
        report = evaluate_folder(images, finder, colours, work, metadata, options, best, missing_wrong)
    if not is_main():
        return
    if print_results([report.result(images.name)], json):
        print_geneval(report)
    if out is not None:
        write_report(report, out)


PAINTING = ("per_prompt", "per_task", "cfg", "temperature", "top_k", "top_p", "sampler", "tokens", "seed", "batch_size")


def _refuse_unread(
    context: typer.Context, images: Path | None, metadata: Path | None, detector: str, ceiling: Path | None
) -> None:
    """Refuse options that this run would not read."""
    if images is not None:
        refuse_given(context, "is about what --model paints, and --images names pictures that exist", *PAINTING)
    else:
        refuse_given(context, "is the tokenizer of pictures that exist, and --model has its own", "tokenizer")
    if metadata is not None:
        refuse_given(context, "chooses prompts, and --metadata names them", "per_task")
    if detector == "scenes":
        refuse_given(context, "is for a Mask2Former, and the detector is that of scenes", "clip", "background")
    if detector != "scenes" or ceiling is not None:
        refuse_given(context, "is whose reconstructions set the ceiling of scenes, and none is measured", "tokenizer")


def tokenizer_ceiling(name: str) -> GenEvalSummary:
    """What perfect scenes score after the reconstruction of a tokenizer by name."""
    from vistok.eval.geneval.paint import reconstruction_ceiling
    from vistok.tokenizers.load import load_tokenizer

    loaded = load_tokenizer(name)
    side = loaded.tokenizer.capabilities.image_size or 64
    return reconstruction_ceiling(loaded.tokenizer, side, device=loaded.device)


def print_geneval(report) -> None:
    """Task table, ceiling and the first failures of a GenEval report."""
    from vistok.cli.output import print_table
    from vistok.eval.geneval.evaluate import describe

    rows = []
    for task, score in report.summary.tasks.items():
        row = [task, f"{score.accuracy:.3f}", f"{score.low:.3f} to {score.high:.3f}", str(score.images)]
        best = report.ceiling.tasks.get(task) if report.ceiling else None
        rows.append((*row, *([f"{best.accuracy:.3f}"] if best else [])))
    print_table(("task", "right", "95 %", "pictures", *(["ceiling"] if report.ceiling else [])), rows)
    for note in report.notes:
        print(note)
    for record in report.failures[:20]:
        print(describe(record))
    if len(report.failures) > 20:
        print(f"and {len(report.failures) - 20} more failures; --out FOLDER writes them all.")


def clipscore(
    images: Annotated[Path, typer.Option(help="Folder of pictures, of `vistok sample`, or a set in GenEval's layout.")],
    clip: Annotated[str, typer.Option(help="CLIP by folder or hub id.")],
    captions: Annotated[
        Path | None, typer.Option(help='JSONL of {"image": ..., "caption": ...}. [default: what is with the pictures]')
    ] = None,
    weight: Annotated[float, typer.Option(help="2.5 for CLIPScore, 1 for the plain cosine.")] = 2.5,
    prefix: Annotated[str, typer.Option(help="Put before every caption.")] = "A photo depicts ",
    batch_size: BatchSize = 32,
    json: Json = None,
) -> None:
    """How well pictures fit their captions.

    Example: vistok eval clipscore --images out/ --captions captions.jsonl --clip openai/clip-vit-base-patch32
    """
    import hashlib

    import torch

    from vistok.cli.output import check_outputs
    from vistok.data.folders import warn_left_out
    from vistok.data.images import load_image
    from vistok.errors import VistokError
    from vistok.eval.captions import read_captions, without_caption
    from vistok.eval.clip_score import ClipModel, clip_scores
    from vistok.eval.protocol import Protocol, Result
    from vistok.runtime import processes

    check_outputs(json)
    if not 0 < weight < math.inf:
        raise VistokError(f"the weight of the cosine is {weight}: give a number above 0, such as 2.5 or 1.")
    pictures = read_captions(images, captions)
    if alone := without_caption(images, pictures):
        many = "pictures" if len(alone) > 1 else "picture"
        warn_left_out(images.name, [f"{len(alone)} {many} without a caption ({', '.join(alone[:3])})"])
    model = ClipModel(clip, processes().device)
    scores = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        loaded = [load_image(picture.path) for picture in batch]
        scores.append(clip_scores(model, loaded, [picture.caption for picture in batch], prefix, weight))
    values = torch.cat(scores)
    asked = hashlib.sha256("\n".join(sorted(picture.caption for picture in pictures)).encode()).hexdigest()
    reference, options = f"captions {asked[:12]}", (f"{weight=}", f"{prefix=}")
    seen_by = ("clip", model.digest, "pil", "clip")
    protocol = Protocol("clipscore", *seen_by, reference=reference, samples=len(values), options=options)
    print_results([Result(images.name, values.mean().item(), protocol, values.std(correction=0).item())], json)
