"""From the ``data`` of a recipe to its source."""

from __future__ import annotations

from vistok.data.scenes.splits import check_training_seed
from vistok.errors import VistokError
from vistok.train.sources.folder import open_folder
from vistok.train.sources.interface import PictureData, Source
from vistok.train.sources.scenes import ScenesSource, SingleObjectScenes


def open_source(data: PictureData, size: int, finite: bool = False, by_class: bool = False) -> Source:
    """Returns the source that a recipe's ``data`` names.

    Args:
        data: its entries.
        size: side of the pictures in pixels.
        finite: the task keeps something of each picture, so their number must be known.
        by_class: a class must say all about a picture: of the embedded world, scenes with one object; of a folder,
            every picture must have one.

    Raises:
        VistokError: entries that do not fit together, a seed that is not to be trained on, or an unusable folder.
    """
    if data.eval_pictures < 1:
        raise VistokError(f"'data.eval_pictures' must be at least 1, got {data.eval_pictures}.")
    if size < 1:
        raise VistokError(f"'data.size' must be at least 1 pixel, got {size}.")
    if data.source == "folder":
        folder = open_folder(data, size)
        if by_class:
            folder.check_classes()
        return folder
    if strange := [name for name in ("path", "held_out") if getattr(data, name) is not None]:
        raise VistokError(f"'data.{strange[0]}' is for folders: add 'source: folder' to 'data', or leave it out.")
    if finite and data.pictures is None:
        raise VistokError("scenes are without end: say as 'data.pictures' how many are trained on.")
    if data.pictures is not None and data.pictures < 1:
        raise VistokError(f"'data.pictures' must be at least 1, got {data.pictures}.")
    world = SingleObjectScenes if by_class else ScenesSource
    return world(size, check_training_seed(data.seed), data.pictures)
