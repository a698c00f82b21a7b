"""``vistok ground``: find in a picture what a text means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs, check_pictures, output_json

DEFAULT = "read-mini"


def ground(
    image: Annotated[Path, typer.Option(help="The picture.")],
    text: Annotated[str, typer.Option(help="What to look for, such as 'the red circle'.")],
    model: Annotated[str, typer.Option(help="Embedded model or folder that a grounding recipe made.")] = DEFAULT,
    sam: Annotated[
        str | None, typer.Option(help="SAM that makes the masks: folder or hub id, e.g. facebook/sam-vit-base.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Paint mask, points and box into this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Write the mask alone, white on black, to this picture.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    json: Json = None,
) -> None:
    """Find in a picture what a text means: a mask with its points (READ), a box (Pink), or a second look (VPT).

    Example: `vistok ground --image scene.png --text "the red circle" --out found.png`
    """
    from vistok.data.images import load_image, save_image
    from vistok.errors import VistokError
    from vistok.projectors.grounding.interface import check_text
    from vistok.zoo.registry import is_embedded

    check_text(text)
    if model == DEFAULT and not is_embedded(model) and not Path(model).exists():
        raise VistokError(
            "no grounding model is part of this package: train one with recipes/read-mini.yaml, and name its folder "
            "with --model."
        )
    picture = load_image(image)
    check_pictures(out, mask)
    check_outputs(out, mask, json)
    from vistok.projectors.grounding.interface import load_grounder
    from vistok.projectors.grounding.masks import SamMasks
    from vistok.projectors.grounding.read import Read
    from vistok.runtime import resolve_device

    place = resolve_device(device)
    grounder = load_grounder(model, place)
    options = {}
    if sam is not None:
        if not isinstance(grounder, Read):
            raise VistokError(f"--sam needs a model that points (READ), and '{model}' does not: leave it out.")
        options["sam"] = SamMasks.from_pretrained(sam, place)
    found = grounder.ground(picture, text, **options)
    if not found.regions:
        raise VistokError(
            f"the model answers '{found.answer}' to '{text}' and points at nothing: name what is in the picture."
        )
    masks = [region.mask for region in found.regions if region.mask is not None]
    if mask is not None and not masks:
        raise VistokError(f"'{model}' tells no masks: leave --mask out, or name a model that makes them (READ).")
    if out is not None:
        from vistok.projectors.grounding.paint import paint

        save_image(paint(picture, found.regions), out)
    if mask is not None:
        from PIL import Image

        together = masks[0].clone()
        for other in masks[1:]:
            together |= other
        save_image(Image.fromarray(together.cpu().numpy()).convert("RGB"), mask)
    regions = [_told(region) for region in found.regions]
    if output_json({"answer": found.answer, "regions": regions}, json, indent=None):
        return
    print(found.answer)
    for region in regions:
        print("  " + ", ".join(f"{name} {value}" for name, value in region.items() if name != "points"))


def _told(region) -> dict:
    """A region in numbers: its share of the picture, its box in pixels (around the mask where there is one), points."""
    told = {}
    if region.mask is not None:
        rows, columns = region.mask.nonzero().unbind(1)
        told["area"] = round(float(region.mask.float().mean()), 4)
        if len(rows):
            told["box"] = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    if region.box is not None:
        told["box"] = [round(value, 1) for value in region.box]
    if region.points is not None:
        kinds = {1: "positive", 0: "negative"}
        named = zip(region.points.xy.tolist(), region.points.labels.tolist(), strict=True)
        told["points"] = [[round(x, 1), round(y, 1), kinds[label]] for (x, y), label in named if label in kinds]
    return told
