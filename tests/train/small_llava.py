"""An untrained LLaVA of the ``vqa`` task at a size that a test can run, and what holds of all that starts from it."""

from __future__ import annotations

import torch

from vistok.data.scenes.vqa import prompt, token_ids
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.vqa import VqaTask

SHAPE = {
    "vision": {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
    },
    "text": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    },
}


def recipe(**data) -> Recipe:
    """Returns its recipe."""
    data = {"seed": 1, "questions": 3, "eval_pictures": 64} | data
    return Recipe(name="small", task="vqa", steps=1, batch_size=2, model=SHAPE, data=data)


def small_llava(folder) -> str:
    """Writes it into a folder and returns the folder's name."""
    VqaTask(recipe()).export(folder, {"exact_match": 0.0}, 1)
    return str(folder)


def assert_asked_alone(model, processor, pictures, pixels, drawn, questions, packed, **tolerance) -> None:
    """Asserts that an exported model, asked one question at a time, has the logits of the task's packed questions.

    Args:
        model, processor: what ``load`` gives for what the task exported.
        pictures, pixels: B of them, as PIL and as the task reads them, [B, ...].
        drawn, questions: B rows of K questions, and as tokens, int64 [B, K, slot].
        packed: the task's logits, [B, K, slot, words].
    """
    for row, asked in enumerate(drawn):
        for k, question in enumerate(asked):
            inputs = processor(images=pictures[row], text=prompt(question.text), return_tensors="pt")
            inputs["pixel_values"] = pixels[row : row + 1]
            place = (questions[row, k] == token_ids()["assistant:"]).nonzero().item()
            with torch.no_grad():
                alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(packed[row, k, place], alone, **tolerance)
