"""``vistok compress``: a question about a picture, answered from fewer visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vistok.cli.output import Json, check_outputs, check_pictures, output_json

DEFAULT = "vtc-cls"


def compress(
    image: Annotated[Path, typer.Option(help="The picture.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about it.")],
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id of a LLaVA-type model.")],
    method: Annotated[
        str | None,
        typer.Option(help="See docs/projectors.md. [default: vtc-cls, or the model's own]"),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Tokens of a view (64) or share of them (25%). [default: the method's]")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with all tokens too.")] = False,
    overlay: Annotated[Path | None, typer.Option(help="Draw which patches were kept into this picture.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = None,
) -> None:
    """Ask a multimodal model about a picture with fewer visual tokens.

    Examples:

    `vistok compress --model llava --image scene.png --question "how many circles are there?" --keep 25% --compare`

    `vistok compress --model llava-hf/llava-1.5-7b-hf --image photo.jpg -q "how many?" --keep 25% --overlay kept.png`
    """
    from vistok.errors import VistokError
    from vistok.runtime import resolve_dtype

    resolve_dtype(dtype)
    if max_new_tokens < 1:
        raise VistokError(f"--max-new-tokens must be at least 1, got {max_new_tokens}.")
    from vistok.data.images import load_image, save_image

    picture = load_image(image)
    check_pictures(overlay)
    check_outputs(overlay, json)
    from vistok.eval.answers.ask import ask, build_compressor, kept_overlay, load, parse_keep
    from vistok.progress import working
    from vistok.projectors.apply.compress import active

    chosen = DEFAULT if method is None else method
    compressor = build_compressor(chosen, None if keep is None else parse_keep(keep))
    _check_overlay(overlay, compressor)
    with working("load the model"):
        network, processor = load(model, device, dtype)
    own = active(network)
    if own is not None and (method is not None or keep is not None or compare):
        raise VistokError(
            f"'{model}' has a compressor of its own, {own.compressor.name}, at work: leave --method, --keep and "
            "--compare out."
        )
    method, compressor = (chosen, compressor) if own is None else (own.compressor.name, None)
    _check_overlay(overlay, own.compressor if compressor is None else compressor)
    answers = {}
    if compare:
        answers["all"], _ = ask(network, processor, picture, question, None, max_new_tokens)
    answers[method], report = ask(network, processor, picture, question, compressor, max_new_tokens)
    painted = None if overlay is None else kept_overlay(processor, picture, report)  # or a refusal, before any output
    if not output_json({name: answer.to_dict() for name, answer in answers.items()}, json, indent=None):
        _tell(answers)
    if painted is not None:
        save_image(painted, overlay)


def _check_overlay(overlay: Path | None, compressor: Any) -> None:
    """Refuses an overlay of a method that keeps no patches, before it is at work."""
    from vistok.errors import VistokError

    if overlay is not None and not compressor.tells_places:
        raise VistokError(f"{compressor.name} tells no patches that --overlay could paint: leave the overlay out.")


def _tell(answers: dict) -> None:
    from vistok.projectors.cost import flops_text

    for name, answer in answers.items():
        print(f"{name}: {answer.text}")
        print(
            f"  {answer.visual_tokens} visual tokens, prefill {answer.prefill_seconds:.3f} s and "
            f"{flops_text(answer.prefill_flops)}, cache {answer.cache_bytes / 2**20:.2f} MiB"
        )
