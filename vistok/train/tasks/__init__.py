"""What can be trained: a task's name leads to its class."""

from __future__ import annotations

from importlib import import_module

from vistok.errors import unknown_name
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task

TASKS = {
    "captions": ("captions", "CaptionTask"),
    "eagle": ("eagle", "EagleTask"),
    "flextok": ("flextok", "FlexTokTask"),
    "janus": ("janus", "JanusTask"),
    "kl": ("kl", "KLTask"),
    "llamagen": ("llamagen", "LlamaGenTask"),
    "llamagen-sequence": ("llamagen_sequence", "LlamaGenSequenceTask"),
    "one-d-piece": ("one_d_piece", "OneDPieceTask"),
    "mar": ("mar", "MARTask"),
    "scenes-features": ("scenes_features", "SceneFeaturesTask"),
    "text": ("text", "TextTask"),
    "tokenflow": ("tokenflow", "TokenFlowTask"),
    "vq": ("vq", "VQTask"),
    "vqa": ("vqa", "VqaTask"),
    "vqa-anyres": ("vqa_anyres", "AnyresTask"),
    "vqa-pvc": ("vqa_packed", "PvcTask"),
    "vqa-tokenpacker": ("vqa_packed", "TokenPackerTask"),
}


def build_task(recipe: Recipe) -> Task:
    """The task that a recipe names.

    Raises:
        VistokError: unknown task.
    """
    if recipe.task not in TASKS:
        raise unknown_name("training task", recipe.task, list(TASKS))
    module, name = TASKS[recipe.task]
    return getattr(import_module(f"vistok.train.tasks.{module}"), name)(recipe)
