"""An unlimited, seeded set of pictures of coloured shapes, with captions, classes, boxes and questions."""

from vistok.data.scenes.language import Group, captions, groups, questions, relation, statements, vocabulary
from vistok.data.scenes.render import boxes, render, render_background, render_masks, shape_distance
from vistok.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    NUM_CLASSES,
    PALETTE,
    SHAPES,
    SIZES,
    Scenes,
    sample_scenes,
    scenes_at,
    shrink,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "NUM_CLASSES",
    "PALETTE",
    "SHAPES",
    "SIZES",
    "Group",
    "Scenes",
    "boxes",
    "captions",
    "groups",
    "questions",
    "relation",
    "render",
    "render_background",
    "render_masks",
    "sample_scenes",
    "scenes_at",
    "shape_distance",
    "shrink",
    "statements",
    "vocabulary",
]
