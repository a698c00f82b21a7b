"""``vistok tokenize`` and ``vistok detokenize``: pictures to ``.vtok`` files and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.output import Json, check_outputs, output_json
from vistok.cli.shared import refuse_given, say

if TYPE_CHECKING:
    from vistok.tokenizers.files import Reached
    from vistok.tokenizers.load import LoadedTokenizer

Tokenizer = Annotated[str, typer.Option(help="An embedded tokenizer, a folder, a checkpoint file or a hub id.")]
Preset = Annotated[str | None, typer.Option(help="Shape of a checkpoint with an unpublished name.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at a time; does not change them.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]


def tokenize(
    context: typer.Context,
    inputs: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    tokenizer: Tokenizer = "vq-mini",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .vtok file, or a folder. [default: beside the pictures]")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Keep this many first tokens. [default: all]")] = None,
    psnr: Annotated[float | None, typer.Option(help="Keep the fewest tokens that reach this PSNR in dB.")] = None,
    lpips: Annotated[float | None, typer.Option(help="Keep the fewest tokens of at most this LPIPS.")] = None,
    lpips_net: Annotated[str, typer.Option(help="alex, vgg or squeeze; needs the two files below.")] = "alex",
    lpips_head: Annotated[Path | None, typer.Option(help="alex.pth, vgg.pth or squeeze.pth of LPIPS v0.1.")] = None,
    lpips_backbone: Annotated[Path | None, typer.Option(help="torchvision's weights of that network.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the centre crop. [default: the tokenizer's]")] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Whole pictures in overlapping tiles, nothing cropped.")
    ] = False,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Least pixels that tiles share. [default: an eighth of a tile]")
    ] = None,
    preset: Preset = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    json: Json = None,
) -> None:
    """Turn pictures into tokens.

    Example: `vistok tokenize photo.jpg --size 64 -o photo.vtok`
    """
    from vistok.errors import VistokError

    if sum(choice is not None for choice in (tokens, psnr, lpips)) > 1:
        raise VistokError("--tokens, --psnr and --lpips each choose the number of tokens: give one of them.")
    for name, wanted in (("psnr", psnr), ("lpips", lpips)):
        if wanted is not None and not math.isfinite(wanted):
            raise VistokError(f"--{name} is {wanted}: give a number.")
    if lpips is None:
        refuse_given(context, "is of LPIPS, which --lpips asks for", "lpips_net", "lpips_head", "lpips_backbone")
    if overlap is not None and not tiles:
        raise VistokError("--overlap is that of tiles: add --tiles, or leave it out.")
    from vistok.data.vtok import SUFFIX
    from vistok.progress import progress
    from vistok.runtime import resolve_device
    from vistok.tokenizers.files import PICTURES, pair_paths, tile_side, tokenize_files
    from vistok.tokenizers.load import load_tokenizer

    check_outputs(json)
    resolve_device(device)
    pairs = pair_paths(inputs, out, PICTURES, SUFFIX)
    reached = _quality(psnr, lpips, lpips_net, lpips_head, lpips_backbone)
    loaded = load_tokenizer(tokenizer, preset, device)
    if tiles and overlap is None:
        overlap = tile_side(loaded.tokenizer.capabilities, size) // 8
    with progress("tokenize", len(pairs)) as advance:
        summary = tokenize_files(loaded, pairs, tokens, reached, size, batch_size, advance, overlap)
    figures = summary.to_dict()
    if output_json(figures, json, indent=None):
        return
    say(
        f"{summary.pictures} pictures, {summary.tokens} tokens, {summary.bytes} bytes, "
        f"{figures['bits_per_pixel']:.3f} bits a pixel"
    )
    if summary.unreached:
        say(f"{summary.unreached} pictures do not reach the quality with all of their tokens, and hold all.")


def detokenize(
    inputs: Annotated[list[Path], typer.Argument(help=".vtok files, or folders of them.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer that made them. [default: the embedded one]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .png, or a folder. [default: beside]")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Decode this many first tokens. [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="Of tokenizers that decode by sampling, and of an unCLIP.")] = 0,
    unclip: Annotated[
        str | None, typer.Option(help="A Stable unCLIP of diffusers that paints SEED's image embeddings.")
    ] = None,
    preset: Preset = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    json: Json = None,
) -> None:
    """Turn tokens back into pictures.

    Example: `vistok detokenize photo.vtok -o back.png`
    """
    from vistok.data.vtok import read_vtok
    from vistok.progress import progress
    from vistok.runtime import resolve_device
    from vistok.tokenizers.files import TOKENS, detokenize_files, pair_paths
    from vistok.tokenizers.load import load_tokenizer

    check_outputs(json)
    resolve_device(device)
    pairs = pair_paths(inputs, out, TOKENS, ".png")
    name = _embedded(read_vtok(pairs[0][0]).tokenizer) if tokenizer is None else tokenizer
    loaded = load_tokenizer(name, preset, device)
    if unclip is not None:
        _attach_unclip(loaded, unclip)
    with progress("detokenize", len(pairs)) as advance:
        count = detokenize_files(loaded, pairs, tokens, batch_size, advance, seed)
    if not output_json({"pictures": count}, json, indent=None):
        say(f"{count} pictures")


def _attach_unclip(loaded: LoadedTokenizer, name: str) -> None:
    """Let an unCLIP paint what the tokenizer gives."""
    from vistok.errors import VistokError
    from vistok.tokenizers.unclip import UnClip

    if not hasattr(loaded.tokenizer, "unclip"):
        raise VistokError(f"'{loaded.name}' gives no image embeddings that an unCLIP paints: leave --unclip out.")
    painter = UnClip.load(name)
    painter.pipeline.to(loaded.device)
    loaded.tokenizer.unclip = painter


def _embedded(name: str) -> str:
    """The name that a file states, if it is that of an embedded tokenizer or of an installed package's own.

    A file must not make us read or fetch anything else.
    """
    from vistok.errors import VistokError
    from vistok.tokenizers.load import TOKENIZERS
    from vistok.zoo import cards

    if name not in TOKENIZERS.plugins and not any(card.embedded and card.name == name for card in cards()):
        raise VistokError(f"the tokens were made by '{name}', which is not embedded: name its weights by --tokenizer.")
    return name


def _quality(
    psnr: float | None, lpips: float | None, net: str, head: Path | None, backbone: Path | None
) -> Reached | None:
    """The quality that a number of tokens must reach, if one was asked for."""
    from vistok.errors import VistokError

    if psnr is not None:
        from vistok.eval.reconstruction.metrics import psnr as measure
        from vistok.eval.reconstruction.metrics import quantise

        return lambda images, outputs: measure(quantise(images) / 255, quantise(outputs) / 255) >= psnr
    if lpips is None:
        return None
    if head is None or backbone is None:
        raise VistokError("--lpips needs the network's two files: give --lpips-head and --lpips-backbone.")
    from vistok.models.vision.lpips import Lpips

    metric = Lpips.from_files(net, head, backbone)
    return lambda images, outputs: metric(images.cpu(), outputs.clamp(-1, 1).cpu()) <= lpips
