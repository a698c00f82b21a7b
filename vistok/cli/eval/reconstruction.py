"""``vistok eval reconstruction``: how well a tokenizer gives pictures back, at each number of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.eval.common import Json, figure_text, print_results
from vistok.cli.shared import refuse_given

if TYPE_CHECKING:
    from vistok.eval.reconstruction.report import TokenizerReport


RECONSTRUCTING = (
    *("tokens", "plot", "pictures", "codecs", "rfid", "weights", "count", "size", "preset", "seed", "batch_size"),
    "device",
)


def reconstruction(
    context: typer.Context,
    originals: Annotated[
        Path | None, typer.Argument(help="Folder of pictures. [default: held-out scenes, with --tokenizer]")
    ] = None,
    outputs: Annotated[
        Path | None, typer.Argument(help="Folder of their reconstructions, under the same names.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Reconstruct with this tokenizer: embedded, a folder, a file or a hub id.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Numbers of tokens, by commas. [default: powers of two, or whole scales]")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the rate-distortion curves into this file.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Draw reconstructions by number of tokens, and their originals, into this file.")
    ] = None,
    codecs: Annotated[bool, typer.Option(help="Compare with JPEG and WebP.")] = True,
    rfid: Annotated[
        str | None, typer.Option(help="Extractor of the Frechet distance to the originals, e.g. scenes-features.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="That extractor's weights.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Scenes, or pictures of the folder at most.")] = 256,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the centre crop. [default: the tokenizer's]")] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of a checkpoint with an unpublished name.")] = None,
    seed: Annotated[int, typer.Option(help="Of tokenizers that decode by sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    convention: Annotated[str, typer.Option(help="Of two folders: default, or llamagen for its tables.")] = "default",
    lpips: Annotated[str | None, typer.Option(help="alex, vgg or squeeze; needs the two files below.")] = None,
    lpips_head: Annotated[Path | None, typer.Option(help="alex.pth, vgg.pth or squeeze.pth of LPIPS v0.1.")] = None,
    lpips_backbone: Annotated[Path | None, typer.Option(help="torchvision's weights of that network.")] = None,
    json: Json = None,
) -> None:
    """PSNR, SSIM, LPIPS, rFID, codebook usage and bytes of a tokenizer by token count; or of two folders.

    Bytes are those of whole files: `.vtok` with its header, JPEG and WebP with theirs.

    Example: vistok eval reconstruction --tokenizer tokenflow --plot rate.png

    Example: vistok eval reconstruction originals/ reconstructions/ --convention llamagen
    """
    from vistok.errors import VistokError

    if (tokenizer is None) == (outputs is None):
        raise VistokError("name a tokenizer with --tokenizer, or two folders: of originals and of reconstructions.")
    if tokenizer is None:
        refuse_given(context, "is about a tokenizer's pictures, and two folders hold all there is", *RECONSTRUCTING)
    else:
        refuse_given(context, "is how two folders are compared, and --tokenizer makes the second", "convention")
    if lpips is None:
        refuse_given(context, "is of LPIPS, which --lpips asks for", "lpips_head", "lpips_backbone")
    if rfid is None:
        refuse_given(context, "is of the extractor, which --rfid names", "weights")
    from vistok.cli.output import check_outputs, output_json
    from vistok.data.folders import warn_left_out
    from vistok.data.images import check_image_target
    from vistok.eval.plots import check_plot
    from vistok.models.vision.lpips import Lpips

    check_outputs(plot, pictures, json)
    check_plot(plot)
    if pictures is not None:
        check_image_target(pictures)
    if lpips and not (lpips_head and lpips_backbone):
        raise VistokError("--lpips needs the files of its weights: --lpips-head and --lpips-backbone.")

    metric = Lpips.from_files(lpips, lpips_head, lpips_backbone) if lpips else None
    if tokenizer is None:
        from vistok.eval.reconstruction.paired import compare_pictures
        from vistok.eval.sets.pictures import FolderPictures

        sources = FolderPictures(originals), FolderPictures(outputs)
        for source in sources:
            warn_left_out(source.name, source.left_out)
        print_results(compare_pictures(*sources, convention, metric), json)
        return

    from vistok.eval.reconstruction.pictures import PictureSource
    from vistok.eval.reconstruction.rate_distortion import plot_rate_distortion
    from vistok.eval.reconstruction.report import evaluate_tokenizer
    from vistok.runtime import resolve_device
    from vistok.tokenizers.load import load_tokenizer

    if device is not None:
        resolve_device(device)
    loaded = load_tokenizer(tokenizer, preset, device)
    source = PictureSource(loaded.tokenizer.capabilities, originals, count, size)
    if originals is not None:
        warn_left_out(source.name, source.listing.left_out)
    network = None
    if rfid is not None:
        from vistok.eval.sets.extractors import load_extractor

        network = load_extractor(rfid, weights)
    report = evaluate_tokenizer(
        loaded, source, _lengths(tokens), batch_size, metric, network, compare_codecs=codecs, seed=seed
    )
    if not output_json([result.to_json() for result in report.results()], json):
        _print(report)
    if pictures is not None:
        from vistok.data.images import save_image
        from vistok.eval.reconstruction.pictures import draw_lengths

        lengths = [point.setting for point in report.curves[report.name]]
        save_image(draw_lengths(loaded, source, lengths, seed=seed), pictures)
    if plot is not None:
        plot_rate_distortion(report.curves, report.side, plot)


def _lengths(tokens: str | None) -> list[int] | None:
    from vistok.errors import VistokError

    try:
        return None if tokens is None else sorted({int(each) for each in tokens.split(",")})
    except ValueError:
        raise VistokError(f"--tokens takes numbers by commas, such as 1,8,64; got '{tokens}'.") from None


def _print(report: TokenizerReport) -> None:
    from vistok.cli.output import print_table

    own = report.curves[report.name]
    optional = [name for name in ("lpips", "rfid") if getattr(own[0], name) is not None]
    rows = []
    for name, points in report.curves.items():
        for point in points:
            rate = f"{point.bits_per_pixel(report.side):.3f}"
            row = [name, str(point.setting), f"{point.bytes:.0f}", f"{point.payload:.0f}", rate]
            row += [f"{point.psnr:.2f}", f"{point.ssim:.4f}"]
            figures = [getattr(point, each) for each in optional]
            rows.append((*row, *("" if figure is None else figure_text(figure) for figure in figures)))
    headings = ("what", "tokens or quality", "bytes", "of tokens", "bits a pixel", "PSNR", "SSIM", *optional)
    print_table(headings, rows)
    for line in report.remarks():
        print(line)
