"""Where a training run's pictures come from: the embedded world, or a folder of a user's own.

A source is a pure function: which pictures a step sees, in which order, and how they are cropped, follow from the
recipe alone. So a run that was killed goes on where it was, and every process draws its own rows of a batch.
"""

from vistok.train.sources.extracted import Extracted
from vistok.train.sources.folder import FolderSource
from vistok.train.sources.interface import Draw, PictureData, Source, in_passes
from vistok.train.sources.open import open_source
from vistok.train.sources.scenes import ScenesSource, SingleObjectScenes

__all__ = [
    "Draw",
    "Extracted",
    "FolderSource",
    "PictureData",
    "ScenesSource",
    "SingleObjectScenes",
    "Source",
    "in_passes",
    "open_source",
]
