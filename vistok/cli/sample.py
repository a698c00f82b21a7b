"""``vistok sample``: prompts or classes in, images out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_distinct, check_outputs, check_pictures, output_json
from vistok.cli.shared import say

Prompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to paint; may be given again.")]

# Options of single samplers that stood beside --sampler until 0.1, and the options of samplers that they are now.
FORMER = {name: name for name in ("window", "init", "variant", "delta", "mode", "residual", "tree", "iterations")} | {
    "draft": "drafter",
    "neighbours": "k",
    "head-steps": "head_steps",
    "prefill": "prefill",
    "inner-temperature": "inner_temperature",
    "solver": "solver",
    "guidance-schedule": "guidance_schedule",
    "spacing": "spacing",
}


def sample(
    context: typer.Context,
    prompt: Prompts = None,
    negative: Annotated[
        str | None, typer.Option(help="What guidance leads away from, e.g. a green ring; of models that read prompts.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt a line.")] = None,
    class_: Annotated[list[int] | None, typer.Option("--class", help="Class to paint; may be given again.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of `vistok models`, or the folder or hub id of a Janus, an Emu3 or a Chameleon. "
            "[default: llamagen]"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A .png (one image, or a grid of several), or a folder for one PNG each.")
    ] = Path("out.png"),
    num: Annotated[int, typer.Option("--num", "-n", help="Images of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="How tokens are drawn, with options, e.g. sjd:window=16; `vistok samplers` lists all. "
            "[default: the model's plain one]"
        ),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Picture of the tokens that each step decided.")] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance, 1 for none. [default: the model's own]")
    ] = None,
    cfg_interval: Annotated[int, typer.Option(help="Guide up to this decode step only; -1 guides all.")] = -1,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Divides the logits, 0 for the most likely tokens; MAR: multiplies the noise. "
            "[default: the model's own]"
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely codes. [default: all]")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of this probability.")] = 1.0,
    control: Annotated[
        list[Path] | None,
        typer.Option(
            help="Picture that the images follow, such as edges, and whose size they have; may be given again."
        ),
    ] = None,
    control_kind: Annotated[
        list[str] | None,
        typer.Option(help="What it shows, such as canny; one for each. [default: what the model knows]"),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="How much it counts; one for all, or one for each. [default: 1]")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture of which a part is painted anew; see --mask.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where --image is painted anew, black where it stays.")
    ] = None,
    upscale: Annotated[
        int | None, typer.Option(metavar="2..8", help="Write pictures so many times as large. [default: as drawn]")
    ] = None,
    upscale_by: Annotated[
        str | None, typer.Option(help="lanczos, which is smooth, or nearest, which repeats pixels. [default: lanczos]")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels, for checkpoints that do not tell.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Stop after so many tokens, where they run coarse to fine.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Generator weights: path or hub id owner/name:file.")] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of a checkpoint with an unpublished name.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer weights: path or hub id. An embedded tokenizer's name alone also chooses the embedded "
            "generator of its tokens."
        ),
    ] = None,
    vq: Annotated[str | None, typer.Option("--vq", hidden=True)] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="T5 encoder: folder or hub id, or a generator that has one.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time; in float32 it does not change them.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or int8 on a CPU.")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformer, on a GPU.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Paint words that the model never saw.")] = False,
    json: Json = None,
) -> None:
    """Paint images of prompts or classes.

    Examples:

    `vistok sample --prompt "a red circle left of a blue square" --out out.png`

    `vistok sample --model mar --class 12 --sampler cspd:drafter=mar-mini-draft --out cross.png`

    `vistok sample --checkpoint canny_MR.safetensors --tokenizer vq_ds16_t2i.pt --text-encoder flan-t5-xl
    --control edges.png --control-kind canny --strength 0.8 --prompt "a house by a lake" --out house.png`

    `vistok sample --checkpoint c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --class 207 --cfg 4 --top-k 2000 --out dog.png`
    """
    from vistok.errors import VistokError

    if top_k is not None and top_k < 1:
        raise VistokError(f"--top-k must be at least 1, got {top_k}; leave it out to keep all codes.")
    conditions = _conditions(prompt, prompts, class_)
    controls = _controls(control, control_kind, strength)
    if (image is None) != (mask is None):
        raise VistokError("--image and --mask belong together: the mask is white where the picture is painted anew.")
    from vistok.files import check_writable, is_folder_target

    check_writable(out, is_folder_target(out))
    check_pictures(trace)
    check_outputs(trace, json)
    check_distinct(out, trace, json)
    from vistok.data.images import Upscale

    if upscale is None and upscale_by is not None:
        raise VistokError(f"--upscale-by {upscale_by} says how pictures become larger: give --upscale 2 too.")
    enlarged = None if upscale is None else Upscale(upscale, upscale_by or "lanczos")
    from vistok.pipelines import expand, pipeline
    from vistok.progress import working
    from vistok.samplers import SamplingParams, parse_sampler
    from vistok.sampling_job import paint_to

    if vq is not None:
        print("vistok: --vq is --tokenizer now.", file=sys.stderr)
        tokenizer = vq
    given = {"guidance": cfg, "temperature": temperature}
    cut = {"guidance_interval": cfg_interval, "top_k": top_k or 0, "top_p": top_p}
    SamplingParams(**{key: value for key, value in given.items() if value is not None}, **cut)  # mistakes come early
    spec = _with_former_options(sampler, context)
    if sampler is not None:
        parse_sampler(spec)  # likewise
    samples = expand(conditions, num)
    with working("load the model"):
        pipe = pipeline(
            model,
            checkpoint=checkpoint,
            preset=preset,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            size=size,
            device=device,
            dtype=dtype,
            compile=compile,
            tokens=tokens,
        )
    pipe.check(conditions, force)
    if negative is not None:
        pipe = pipe.with_negative(negative, force)
    if image is not None:
        pipe = pipe.with_image(image, mask)
    for given_control in controls:
        pipe = pipe.with_control(*given_control)
    chosen = pipe.sampler(pipe.family.plain + spec if sampler is None else spec)
    summary = paint_to(
        out, pipe, samples, chosen, pipe.sampling_params(**given, **cut), seed, batch_size, trace, enlarged
    )
    if summary is None:  # another process of the job reports
        return
    if not output_json(summary.to_dict(), json, indent=None):
        say(summary)


def _controls(
    pictures: list[Path] | None, kinds: list[str] | None, strengths: list[float] | None
) -> list[tuple[Path, str | None, float]]:
    """Control pictures of the command line, each with its kind and strength."""
    from vistok.errors import VistokError

    pictures, kinds, strengths = list(pictures or []), list(kinds or []), list(strengths or [])
    if not pictures and (kinds or strengths):
        raise VistokError("--control-kind and --strength tell about a picture: give it by --control edges.png.")
    if kinds and len(kinds) != len(pictures):
        raise VistokError(
            f"--control was given {len(pictures)} times and --control-kind {len(kinds)}: give one for each."
        )
    if len(strengths) not in (0, 1, len(pictures)):
        raise VistokError(
            f"--control was given {len(pictures)} times and --strength {len(strengths)}: give one for each."
        )
    strengths = strengths * len(pictures) if len(strengths) == 1 else strengths or [1.0] * len(pictures)
    return list(zip(pictures, kinds or [None] * len(pictures), strengths, strict=True))


def _with_former_options(sampler: str | None, context: typer.Context) -> str:
    """The text of the sampler, with options of its own that stand beside it on the command line behind it.

    Raises:
        VistokError: an argument that is no option of this command, neither now nor formerly.
    """
    from vistok.errors import VistokError, unknown_name

    spec, given = sampler or "", list(context.args)
    while given:
        name, equals, value = given.pop(0).partition("=")
        if not name.startswith("--"):
            raise VistokError(f"'{name}' belongs to no option: a prompt is given by --prompt \"...\".")
        if name.removeprefix("--") not in FORMER:
            known = [option for parameter in context.command.params for option in parameter.opts]
            raise unknown_name("option", name, known)
        if not equals and not given:
            raise VistokError(f"the option {name} lacks its value.")
        option = f":{FORMER[name.removeprefix('--')]}={value if equals else given.pop(0)}"
        print(f"vistok: {name} is part of --sampler now, as in --sampler {sampler or 'NAME'}{option}.", file=sys.stderr)
        spec += option
    return spec


def _conditions(prompt: list[str] | None, prompts: Path | None, classes: list[int] | None) -> list[str | int]:
    """Prompts or classes of the command line, exactly one kind."""
    from vistok.errors import VistokError

    texts = list(prompt or [])
    if prompts is not None:
        try:
            text = prompts.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise VistokError(f"cannot read the prompts in '{prompts}': {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise VistokError(
                f"cannot read the prompts in '{prompts}': give a text file in UTF-8, one prompt a line."
            ) from error
        # A line ends where editors end it: str.splitlines would also cut at separators inside a caption.
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if not lines and not texts:
            raise VistokError(f"there is no prompt in '{prompts}': write one a line.")
        texts += lines
    if bool(texts) == bool(classes):
        seen = "both" if texts else "neither"
        raise VistokError(f'say what to paint by --prompt "a red circle" or by --class 207; got {seen}.')
    return texts or list(classes)
