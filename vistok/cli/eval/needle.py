"""``vistok eval needle``: whether a language model reads back, under policies of its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.eval.common import Json

QUESTION = 16  # tokens that have room for a question and its answer


def needle(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id of a causal LM.")] = "text-mini",
    policies: Annotated[
        str, typer.Option(help="How the cache is kept and read, by commas, with options as in tidal:top_k=64.")
    ] = "full",
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of a passage, by commas. [default: nearly as many as the model reads]")
    ] = None,
    needles: Annotated[
        int, typer.Option(min=1, help="Needles of a passage, one in each of as many parts; all are asked for.")
    ] = 8,
    texts: Annotated[int, typer.Option(min=1, help="Passages of each length.")] = 8,
    seed: Annotated[int, typer.Option(help="Of passages and needles.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    plot: Annotated[Path | None, typer.Option(help="Draw what was found by length and depth into this file.")] = None,
    json: Json = None,
) -> None:
    """Needles in long texts: share found by length and depth, and what decode steps read and keep for it.

    Passages are the embedded corpus's held-out modules; the question comes when the passage is in the cache already.

    Example: vistok eval needle --policies full,tidal:top_k=64,snapkv:budget=64 --texts 2
    """
    from vistok.cli.output import check_outputs, output_json
    from vistok.context import POLICIES
    from vistok.data.needles import NeedleText
    from vistok.data.text import documents
    from vistok.errors import VistokError
    from vistok.eval.needle import check_needles, find_needles, plot_needles
    from vistok.eval.plots import check_plot
    from vistok.models.huggingface import check_reads
    from vistok.progress import progress
    from vistok.zoo.transformers import load_causal_lm

    check_plot(plot)
    check_outputs(plot, json)
    try:
        sizes = [int(word) for word in lengths.split(",")] if lengths is not None else []
    except ValueError as error:
        raise VistokError(f"--lengths is '{lengths}': give numbers by commas, such as 1024,4096.") from error
    chosen = {name.strip(): POLICIES.build(name.strip()) for name in policies.split(",")}
    network, tokenizer = load_causal_lm(model, device, dtype)
    sizes = sizes or [network.config.get_text_config(decoder=True).max_position_embeddings - QUESTION]
    check_reads(network, max(sizes) + QUESTION, model)
    text = NeedleText(tokenizer, documents("held-out"))
    for policy in chosen.values():
        check_needles(network, text, policy, sizes, needles, texts, seed)
    points = []
    with progress("eval", len(sizes) * len(chosen) * texts) as advance:
        for name, policy in chosen.items():
            for length in sizes:
                asked = {"name": name, "seed": seed, "advance": advance}
                points.append(find_needles(network, text, policy, length, needles, texts, **asked))
    settings = {"model": model, "seed": seed, "dtype": dtype}
    if not output_json({**settings, "points": [point.to_dict() for point in points]}, json):
        _tell(points, f"{model}: {texts} passages with {needles} needles")
    if plot is not None:
        plot_needles(points, plot)


def _tell(points: list, title: str) -> None:
    from vistok.cli.output import print_table

    rows = []
    for point in points:
        found = point.found
        shares = f"{found.low:.1%} to {found.high:.1%}", f"{point.reads:.1%}", f"{point.kept:.1%}"
        depths = " ".join(f"{share:.0%}" for share in point.by_depth)
        rows.append((point.policy, str(point.length), f"{found.value:.1%}", *shares, depths))
    print_table(("policy", "tokens", "found", "95 %", "reads", "kept", "by depth"), rows, title)
