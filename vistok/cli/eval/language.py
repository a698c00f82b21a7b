"""``vistok eval language``: token sequences as a language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.eval.common import Json, print_results


def language(
    folder: Annotated[Path | None, typer.Argument(help="Folder of pictures. [default: held-out scenes]")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Whose tokens: an embedded tokenizer, a folder, a checkpoint file or a hub id.")
    ] = "vq-mini",
    ngrams: Annotated[int, typer.Option(min=1, help="Longest n-grams.")] = 3,
    held_out: Annotated[float, typer.Option(help="Share of pictures that the n-gram models are scored on.")] = 0.2,
    plot: Annotated[Path | None, typer.Option(help="Draw rank-frequency curves and growth into this file.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Scenes, or pictures of the folder at most.")] = 512,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the centre crop. [default: the tokenizer's]")] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of a checkpoint with an unpublished name.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    json: Json = None,
) -> None:
    """Zipf and Heaps fits, entropy, compression, innovation and n-gram perplexity of a tokenizer's tokens.

    Example: vistok eval language --tokenizer tokenflow --plot language.png
    """
    import torch

    from vistok.cli.output import check_outputs
    from vistok.errors import VistokError
    from vistok.eval.plots import check_plot

    check_outputs(plot, json)
    check_plot(plot)
    from vistok.data.folders import warn_left_out
    from vistok.eval.language import check_ngrams, check_split, language_results, language_statistics, plot_language
    from vistok.eval.reconstruction.pictures import PictureSource
    from vistok.runtime import resolve_device
    from vistok.tokenizers.load import load_tokenizer

    if device is not None:
        resolve_device(device)
    loaded = load_tokenizer(tokenizer, preset, device)
    capabilities = loaded.tokenizer.capabilities
    source = PictureSource(capabilities, folder, count, size)
    if folder is not None:
        warn_left_out(source.name, source.listing.left_out)
    if not 0 < held_out < 1:
        raise VistokError(f"--held-out is {held_out:g}: give a share between 0 and 1.")
    source.check_count(2, "a statistic of languages")
    check_split(source.total, held_out)
    capabilities.check_discrete()
    parts = []
    for images in source.batches(batch_size):
        parts.append(loaded.tokenizer.encode(images.to(loaded.device)).flatten(1).cpu())
        check_ngrams(parts[0], ngrams)  # of how many tokens pictures are is known once the first have them
    tokens = torch.cat(parts)
    statistics = language_statistics(tokens, capabilities.codebook_size, range(1, ngrams + 1), held_out)
    reference = f"{source.name} ({len(tokens)} pictures, {tokens.shape[1]} tokens each)"
    print_results(language_results(loaded.name, loaded.sha256, statistics, reference, len(tokens)), json)
    if plot is not None:
        plot_language(statistics, plot)
