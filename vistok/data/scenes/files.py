"""Scenes as files that a person can look at: PNG pictures and one line of JSON for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vistok.data.caption_lines import METADATA
from vistok.data.images import save_image, to_pil
from vistok.data.scenes.controls import RENDERERS
from vistok.data.scenes.language import captions, groups, questions
from vistok.data.scenes.render import boxes, render
from vistok.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scenes, sample_scenes
from vistok.errors import VistokError, unknown_name
from vistok.files import atomic_path, check_writable
from vistok.jobs import MANIFEST
from vistok.progress import progress

BATCH = 256


def describe(scenes: Scenes, side: int) -> list[dict]:
    """What is on each scene: caption, label, background, objects with boxes in pixels, questions with answers."""
    columns = zip(
        captions(scenes),
        scenes.label.tolist(),
        scenes.background.tolist(),
        groups(scenes),
        boxes(scenes, side).tolist(),
        scenes.present.tolist(),
        scenes.shape.tolist(),
        scenes.colour.tolist(),
        scenes.size.tolist(),
        strict=True,
    )
    out = []
    for caption, label, background, scene, box, present, shape, colour, size in columns:
        slots = [i for i, here in enumerate(present) if here]
        out.append(
            {
                "caption": caption,
                "label": label,
                "background": BACKGROUNDS[background],
                "objects": [
                    {
                        "shape": SHAPES[shape[i]],
                        "colour": COLOURS[colour[i]],
                        "size": SIZES[size[i]],
                        "box": [round(v, 2) for v in box[i]],
                    }
                    for i in slots
                ],
                "questions": questions(scene, BACKGROUNDS[background]),
            }
        )
    return out


def write_scenes(folder: str | Path, count: int, side: int = 64, seed: int = 0, controls: Sequence[str] = ()) -> None:
    """Write ``000000.png`` and so on, and ``metadata.jsonl``, to a folder; control pictures have the same names, in a
    folder of their kind within.

    Args:
        folder: where to; made if absent.
        count: how many scenes, at least 1.
        side: pixels along a side, at least 32.
        seed: which world.
        controls: kinds of control pictures, see ``vistok.data.scenes.controls.RENDERERS``.

    Raises:
        VistokError: a number out of range, an unknown kind, or a folder that cannot be written to or that holds
            pictures of another set, which would stay among these.
    """
    if strange := [kind for kind in controls if kind not in RENDERERS]:
        raise unknown_name("kind of scenes' control pictures", strange[0], list(RENDERERS))
    if count < 1 or side < 32:
        raise VistokError(f"scenes need a number of at least 1 and a size of at least 32, got {count} and {side}.")
    folder = Path(folder)
    check_writable(folder, folder=True)
    stays = next((name for name in (MANIFEST, f"{count:06d}.png") if (folder / name).exists()), None)
    if stays is not None:
        raise VistokError(
            f"'{folder}' holds another set, whose '{stays}' would stay among these scenes: choose another folder, or "
            "remove this one."
        )
    with (
        atomic_path(folder / METADATA) as path,
        path.open("w", encoding="utf-8") as file,
        progress("scenes", count) as advance,
    ):
        for start in range(0, count, BATCH):
            scenes = sample_scenes(min(BATCH, count - start), seed, start)
            pictures = to_pil(render(scenes, side))
            for kind in controls:
                for i, picture in enumerate(to_pil(RENDERERS[kind](scenes, side)), start):
                    save_image(picture, folder / kind / f"{i:06d}.png")
            for i, (picture, entry) in enumerate(zip(pictures, describe(scenes, side), strict=True), start):
                name = f"{i:06d}.png"
                save_image(picture, folder / name)
                file.write(json.dumps({"file": name, **entry}) + "\n")
                advance()
