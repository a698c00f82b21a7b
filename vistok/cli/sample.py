"""``vistok sample``: prompts or classes in, pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs, output_json

Prompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to paint; may be given again.")]


def sample(
    prompt: Prompts = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt a line.")] = None,
    class_: Annotated[list[int] | None, typer.Option("--class", help="Class to paint; may be given again.")] = None,
    model: Annotated[str, typer.Option(help="A model of `vistok models`.")] = "llamagen",
    out: Annotated[
        Path, typer.Option(help="A .png (one picture, or a grid of several), or a folder for one PNG each.")
    ] = Path("out.png"),
    num: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    sampler: Annotated[
        str | None, typer.Option(help="How tokens are drawn; see docs/samplers.md. [default: the model's plain way]")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="sjd: rows of a pass, or auto for what suits this machine; cspd: drafted steps."),
    ] = None,
    init: Annotated[str | None, typer.Option(help="sjd: how fresh drafts are made.")] = None,
    variant: Annotated[str | None, typer.Option(help="sjd: coupled or published.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="eagle, lantern: the draft network. [default: the embedded model's]")
    ] = None,
    neighbours: Annotated[int | None, typer.Option(help="lantern: codes that may lend their probability.")] = None,
    delta: Annotated[float | None, typer.Option(help="lantern: how much they may lend.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="lantern: additive or multiplicative (LANTERN++); cspd: exact or reference.")
    ] = None,
    residual: Annotated[str | None, typer.Option(help="lantern: paper or reference.")] = None,
    tree: Annotated[str | None, typer.Option(help="eagle, lantern: dynamic, or the name of a static tree.")] = None,
    iterations: Annotated[int | None, typer.Option(help="mar, cspd: steps over the picture. [default: 64]")] = None,
    head_steps: Annotated[
        int | None, typer.Option(help="mar, cspd: diffusion steps of each token. [default: the model's own, or 100]")
    ] = None,
    prefill: Annotated[
        float | None, typer.Option(help="cspd: share of the steps that the target takes alone. [default: 0.05]")
    ] = None,
    inner_temperature: Annotated[
        float | None, typer.Option(help="cspd, reference: leniency towards drafts that miss. [default: 42]")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="mar: ddpm, or dpm++ for about ten head steps.")] = None,
    guidance_schedule: Annotated[
        str | None, typer.Option(help="mar, cspd: guidance grows linear, or is constant. [default: the model's own]")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="mar, cspd: how the head's steps lie: even or root. [default: the model's own]")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Picture of the tokens that each step decided.")] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance, 1 for none. [default: the model's own]")
    ] = None,
    cfg_interval: Annotated[int, typer.Option(help="Guide up to this decode step only; -1 guides all.")] = -1,
    temperature: Annotated[
        float | None, typer.Option(help="Divides the logits; MAR: multiplies the noise. [default: the model's own]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely codes. [default: all]")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of this probability.")] = 1.0,
    size: Annotated[int | None, typer.Option(help="Side in pixels, for checkpoints that do not tell.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Paint with the embedded generator of this tokenizer's tokens.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Stop after so many tokens, where they run coarse to fine.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Generator weights: path or hub id owner/name:file.")] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of a checkpoint with an unpublished name.")] = None,
    vq: Annotated[str | None, typer.Option(help="Tokenizer weights: path or hub id.")] = None,
    text_encoder: Annotated[str | None, typer.Option(help="T5 encoder: folder or hub id.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time; does not change them.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformer, on a GPU.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Paint words that the model never saw.")] = False,
    json: Json = None,
) -> None:
    """Paint pictures of prompts or classes.

    Examples:

    `vistok sample --prompt "a red circle left of a blue square" --out out.png`

    `vistok sample --model mar --class 12 --sampler cspd --draft mar-mini-draft --out cross.png`

    `vistok sample --checkpoint c2i_B_256.pt --vq vq_ds16_c2i.pt --class 207 --cfg 4 --top-k 2000 --out dog.png`
    """
    from vistok.errors import VistokError

    if top_k is not None and top_k < 1:
        raise VistokError(f"--top-k must be at least 1, got {top_k}; leave it out to keep all codes.")
    conditions = _conditions(prompt, prompts, class_)
    from vistok.files import check_writable, is_folder_target

    check_writable(out, is_folder_target(out))
    check_outputs(trace, json)
    from vistok.pipelines import build_sampler, expand, pipeline
    from vistok.samplers import SamplingParams, sampler_class
    from vistok.sampling_job import paint_to

    given = {"guidance": cfg, "temperature": temperature}
    cut = {"guidance_interval": cfg_interval, "top_k": top_k or 0, "top_p": top_p}
    SamplingParams(
        **{key: value for key, value in given.items() if value is not None}, **cut
    )  # a mistake is told before loading
    if sampler is not None:
        sampler_class(sampler)  # a misspelt name is told before anything is loaded
    samples = expand(conditions, num)
    pipe = pipeline(
        model,
        checkpoint=checkpoint,
        preset=preset,
        vq=vq,
        text_encoder=text_encoder,
        size=size,
        device=device,
        dtype=dtype,
        compile=compile,
        tokenizer=tokenizer,
        tokens=tokens,
    )
    pipe.check(conditions, force)
    params = pipe.sampling_params(**given, **cut)
    rows = int(window) if window is not None and window.isdecimal() else window
    options = {"window": rows, "init": init, "variant": variant, "k": neighbours, "delta": delta}
    options |= {"mode": mode, "residual": residual, "tree": tree}
    options |= {"iterations": iterations, "head_steps": head_steps, "solver": solver}
    options |= {"guidance_schedule": guidance_schedule, "spacing": spacing}
    options |= {"prefill": prefill, "inner_temperature": inner_temperature}
    chosen = build_sampler(pipe, sampler, draft, **options)
    summary = paint_to(out, pipe, samples, chosen, params, seed, batch_size, trace)
    if summary is None:  # another process of the job reports
        return
    if not output_json(summary.to_dict(), json, indent=None):
        print(summary)


def _conditions(prompt: list[str] | None, prompts: Path | None, classes: list[int] | None) -> list[str | int]:
    """Prompts or classes of the command line, exactly one kind."""
    from vistok.errors import VistokError

    texts = list(prompt or [])
    if prompts is not None:
        try:
            lines = prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VistokError(
                f"cannot read the prompts in '{prompts}': give a text file, one prompt a line."
            ) from error
        texts += [line.strip() for line in lines if line.strip()]
    if bool(texts) == bool(classes):
        seen = "both" if texts else "neither"
        raise VistokError(f'say what to paint by --prompt "a red circle" or by --class 207; got {seen}.')
    return texts or list(classes)
