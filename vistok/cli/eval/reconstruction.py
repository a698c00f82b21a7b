"""``vistok eval reconstruction``: PSNR, SSIM and LPIPS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.eval.common import Json, print_results


def reconstruction(
    originals: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    outputs: Annotated[Path, typer.Argument(help="Folder of their reconstructions, in the same order of names.")],
    convention: Annotated[str, typer.Option(help="default, or llamagen to reproduce its tables.")] = "default",
    lpips: Annotated[str | None, typer.Option(help="alex, vgg or squeeze; needs the two files below.")] = None,
    lpips_head: Annotated[Path | None, typer.Option(help="alex.pth, vgg.pth or squeeze.pth of LPIPS v0.1.")] = None,
    lpips_backbone: Annotated[Path | None, typer.Option(help="torchvision's weights of that network.")] = None,
    json: Json = None,
) -> None:
    """PSNR, SSIM and LPIPS of reconstructions.

    Example: vistok eval reconstruction originals/ reconstructions/ --convention llamagen
    """
    from vistok.eval.lpips import Lpips
    from vistok.eval.pictures import FolderPictures
    from vistok.eval.reconstruction import compare_pictures

    metric = Lpips.from_files(lpips, lpips_head, lpips_backbone) if lpips else None
    sources = FolderPictures(originals), FolderPictures(outputs)
    print_results(compare_pictures(*sources, convention, metric), json)
