"""What can be trained: a task's name leads to its class."""

from __future__ import annotations

from vistok.errors import unknown_name
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task


def build_task(recipe: Recipe) -> Task:
    """The task that a recipe names.

    Raises:
        VistokError: unknown task.
    """
    if recipe.task == "llamagen":
        from vistok.train.tasks.llamagen import LlamaGenTask

        return LlamaGenTask(recipe)
    if recipe.task == "vq":
        from vistok.train.tasks.vq import VQTask

        return VQTask(recipe)
    if recipe.task == "captions":
        from vistok.train.tasks.captions import CaptionTask

        return CaptionTask(recipe)
    if recipe.task == "eagle":
        from vistok.train.tasks.eagle import EagleTask

        return EagleTask(recipe)
    raise unknown_name("training task", recipe.task, ["captions", "eagle", "llamagen", "vq"])
