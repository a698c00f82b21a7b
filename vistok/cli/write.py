"""``vistok write``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs, output_json


def write(
    prompt: Annotated[str, typer.Argument(help="What is continued; - reads it from standard input.")],
    model: Annotated[str, typer.Option(help="An embedded model, a folder, or a hub id.")] = "text-mini",
    drafter: Annotated[
        str,
        typer.Option(
            help="What proposes tokens: none, lookup, recycling, draft, eagle, pearl, ppd, medusa, clover, aded, rasd, "
            "hidden-transfer, s2d, lexical-units, or a name that another package adds."
        ),
    ] = "recycling",
    draft: Annotated[
        str | None,
        typer.Option(help="The small model, or the drafter's trained weights. [default: their own for text-mini]"),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are written at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of this probability.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text behind which writing ends; may be repeated.")] = None,
    tree: Annotated[
        int | None, typer.Option(min=1, help="Print the draft tree of this step and what was kept of it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = None,
) -> None:
    """Continue a text with speculative decoding: the text as it is decided, then what the drafts were worth.

    Example: `vistok write "def read(self, path):" --drafter recycling --tree 5`
    """
    import torch

    from vistok.cli.shared import check_drawing
    from vistok.errors import VistokError
    from vistok.models.huggingface import check_reads
    from vistok.progress import working
    from vistok.samplers.writing import SMALL, check_draft, draft_tree, drafter_of, written
    from vistok.zoo.transformers import load_causal_lm

    check_outputs(json)
    check_drawing(temperature, top_p)
    check_draft(drafter, draft)
    if "" in (stop or []):
        raise VistokError("--stop is empty, which stands in every text: name the text behind which writing ends.")
    text = _standard_input() if prompt == "-" else prompt
    with working("load the model"):
        target, tokenizer = load_causal_lm(model, device, dtype)
    ids = tokenizer(text, return_tensors="pt").input_ids.to(target.device)
    check_reads(target, ids.shape[1] + new_tokens, model)
    if draft is None and model == "text-mini" and drafter in SMALL:
        draft = "text-mini-draft"
    speculation, watched = drafter_of(drafter, target, tokenizer, draft, device, dtype, tree)
    torch.manual_seed(seed)
    quiet = json is not None and str(json) == "-"
    options = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    found = written(target, tokenizer, ids, speculation, new_tokens, options, stop or [], None if quiet else sys.stdout)
    settings = {"model": model, "drafter": drafter, "draft": draft, "seed": seed}
    try:
        lines = [] if watched is None else draft_tree(watched, tokenizer)
    except VistokError:  # the text is there, whatever became of its tree
        output_json(settings | found, json)
        raise
    if output_json(settings | found | ({} if watched is None else {"tree": lines}), json):
        return
    if lines:
        print(f"\nstep {tree}, * for what was kept:", *lines, sep="\n")
    figures = {name: value for name, value in found.items() if name != "text"}
    told = (f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())
    print(", ".join(told), file=sys.stderr)


def _standard_input() -> str:
    from vistok.cli.shared import check_text
    from vistok.errors import VistokError

    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise VistokError(f"standard input is no text in {error.encoding}: convert it first, as iconv does.") from None
    check_text("standard input", text)
    return text
