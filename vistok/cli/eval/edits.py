"""``vistok eval edits``: what edits of a cached prompt save and lose."""

from __future__ import annotations

from typing import Annotated

import typer

from vistok.cli.eval.common import Json


def edits(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id of a causal LM.")] = "text-mini",
    length: Annotated[int, typer.Option(min=64, help="Tokens of the edited text.")] = 192,
    inserted: Annotated[int, typer.Option(min=1, help="Of them, tokens that the edit brings.")] = 16,
    ahead: Annotated[int, typer.Option(min=1, help="Tokens behind the text that are scored.")] = 64,
    texts: Annotated[int, typer.Option(min=1, help="Passages of held-out modules.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the passages.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = None,
) -> None:
    """Tokens inserted into the first quarter of a cached text: perplexity and needles behind an edit and a new reading.

    Example: vistok eval edits --texts 4
    """
    from vistok.cli.output import check_outputs, output_json, print_table
    from vistok.data.needles import NeedleText
    from vistok.data.text import documents
    from vistok.eval.edits import check_edit, measure_edits
    from vistok.models.huggingface import check_reads
    from vistok.progress import progress
    from vistok.zoo.transformers import load_causal_lm

    check_outputs(json)
    check_edit(length, inserted)
    network, tokenizer = load_causal_lm(model, device, dtype)
    check_reads(network, length + ahead, model)
    text = NeedleText(tokenizer, documents("held-out"))
    with progress("eval", texts) as advance:
        found = measure_edits(network, text, length, inserted, ahead, texts, seed=seed, advance=advance)
    if output_json({"model": model, "seed": seed, "dtype": dtype, **found.to_dict()}, json):
        return
    rows = [(way, str(perplexity), f"{found.found[way]:.1%}") for way, perplexity in found.perplexity.items()]
    title = f"{model}: {inserted} tokens into {length}, {texts} texts"
    print_table(("way", "perplexity", "needles found"), rows, title)
    change = found.change
    bounds = f"[{change.low:+.2%}, {change.high:+.2%}]"
    print(
        f"an edit saves {found.saved:.1%} of a new reading and changes the perplexity by {change.value:+.2%} {bounds}"
    )
