"""What can be trained: a task's name leads to its class."""

from __future__ import annotations

from importlib import import_module

from vistok.errors import unknown_name
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task

TASKS = {
    "captions": ("captions", "CaptionTask"),
    "eagle": ("eagle", "EagleTask"),
    "llamagen": ("llamagen", "LlamaGenTask"),
    "scenes-features": ("scenes_features", "SceneFeaturesTask"),
    "vq": ("vq", "VQTask"),
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
