"""An unlimited, seeded set of rooms of solids as segmented point clouds, and questions that name them by identifier."""

from vistok.data.scenes3d.language import Question, ask, draw_names, draw_questions, vocabulary
from vistok.data.scenes3d.world import (
    MAX_OBJECTS,
    SHAPES,
    Rooms,
    locations,
    mean_colours,
    point_clouds,
    sample_rooms,
)

__all__ = [
    "MAX_OBJECTS",
    "SHAPES",
    "Question",
    "Rooms",
    "ask",
    "draw_names",
    "draw_questions",
    "locations",
    "mean_colours",
    "point_clouds",
    "sample_rooms",
    "vocabulary",
]
