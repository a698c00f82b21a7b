"""Train a small Pink on referring tasks made from the boxes of scenes (arXiv 2310.00582).

Adapters, the projector, and rows for the characters of a box are trained; the rest of the LLaVA is frozen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vistok.data.boxes import AGREES, overlap, parse_box
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.box_tasks import TASKS, BoxTask, draw_box_tasks
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import ASSISTANT
from vistok.models.bottleneck import add_bottlenecks, bottleneck_state
from vistok.projectors.grounding.pink import PROJECTOR, WORDS
from vistok.train.lora import Lora
from vistok.train.options import read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.answers import answer_loss, answered_right
from vistok.train.tasks.scenes.extension import (
    BoxReader,
    ExtendedLlava,
    ExtensionInit,
    ExtensionTask,
    beginnings,
    slots,
)

_SPELT = re.compile(r"([\[\],.]|\d)")


@dataclass(frozen=True, kw_only=True)
class PinkData:
    """Entries of ``data`` of the ``pink`` task.

    Attributes:
        seed: the world that is trained on.
        questions: about each picture.
        tasks: which, of ``vistok.data.scenes.box_tasks.TASKS``.
        decimals: of a coordinate: on 64 pixels, the third is noise.
        supervision: weight of reading the box that is asked for, as numbers, from the middle of the language model
            where the answer begins. Without, the place of what a phrase means hardly gets there.
        slot: tokens of the longest question with its answer.
        eval_pictures: how many held-out pictures are asked about.
    """

    seed: int
    questions: int = 4
    tasks: tuple[str, ...] = TASKS
    decimals: int = 2
    supervision: float = 0.0
    slot: int = 56
    eval_pictures: int = 128


@dataclass(frozen=True, kw_only=True)
class PinkModel:
    """Entries of ``model``.

    Attributes:
        lora: adapters by PEFT.
        bottleneck: width of Pink's own adapters, in the place of LoRA; 0 for none.
        projector: whether the projector is trained too, as published.
    """

    lora: Lora | None = field(default_factory=Lora)
    bottleneck: int = 0
    projector: bool = True


class PinkObjective(nn.Module):
    """Cross-entropy of answers, boxes spelt as characters, and of boxes as numbers, which serve training alone.

    Args:
        extended: the LLaVA with the characters of a box.
        projector: whether its projector is trained.
        supervision: weight of the numbers; nothing reads them at 0.
    """

    def __init__(self, extended: ExtendedLlava, projector: bool, supervision: float):
        super().__init__()
        self.extended, self.supervision = extended, supervision
        extended.base.model.multi_modal_projector.requires_grad_(projector)
        self.numbers = BoxReader(extended.base.config.text_config.hidden_size) if supervision else None

    def answer_logits(self, images: Tensor, questions: Tensor) -> Tensor:
        """Returns logits behind every token of questions [B, K, slot], each asked alone: [B, K, slot, words]."""
        return self.extended.logits(self.extended.read(self.extended.look(images)[0], questions)[1])

    def forward(self, images: Tensor, questions: Tensor, targets: Tensor, boxes: Tensor):
        _, hidden, inner = self.extended.read(self.extended.look(images)[0], questions)
        loss = answer_loss(self.extended.logits(hidden), targets)
        parts = {"answers": loss.detach()}
        if self.numbers is not None:
            numbers = self.numbers(beginnings(inner, targets), boxes)
            loss, parts["numbers"] = loss + self.supervision * numbers, numbers.detach()
        return loss, parts


def spelt(text: str) -> str:
    """Returns a text in which the characters of boxes and marks stand apart."""
    return _SPELT.sub(r" \1 ", text.replace("?", " ?"))


class PinkTask(ExtensionTask):
    """The ``pink`` task: see PinkData, PinkModel and ExtensionInit."""

    kind, words, paper = "pink", WORDS, "2310.00582"

    def __init__(self, recipe: Recipe):
        self.data = read_options(PinkData, recipe.data, "data")
        self.shape = read_options(PinkModel, recipe.model, "model")
        check_training_seed(self.data.seed)
        init = read_options(ExtensionInit, recipe.init, "init")
        extended = self.start(recipe, init, None if self.shape.bottleneck else self.shape.lora)
        if self.shape.bottleneck:
            add_bottlenecks(extended.base.model.language_model, self.shape.bottleneck)
        self.model = PinkObjective(extended, self.shape.projector, self.data.supervision)

    def options(self) -> dict[str, int]:
        return {"decimals": self.data.decimals}

    def heads(self) -> dict[str, Tensor]:
        base = self.model.extended.base.model
        projector = base.multi_modal_projector.state_dict() if self.shape.projector else {}
        return bottleneck_state(base.language_model) | {f"{PROJECTOR}{key}": value for key, value in projector.items()}

    def _tokens(self, pairs: list[list[tuple[str, str]]]) -> tuple[Tensor, Tensor]:
        rows = [[(f"{spelt(asked)} {ASSISTANT}", spelt(said)) for asked, said in row] for row in pairs]
        return slots(rows, self.model.extended.ids, self.data.slot)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = sample_scenes(rows.stop - rows.start, self.data.seed, start)
        drawn = draw_box_tasks(scenes, self.data.questions, self.data.tasks, self.data.decimals)
        questions, targets = self._tokens([[(t.question, t.answer) for t in row] for row in drawn])
        none = (float("inf"),) * 4
        boxes = [[parse_box(t.answer, (1, 1), self.data.decimals) or none for t in row] for row in drawn]
        return {
            "images": render(scenes, self.side),
            "questions": questions,
            "targets": targets,
            "boxes": torch.tensor(boxes),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns what the model answers about held-out pictures.

        Returns:
            The share of phrases whose box is found (overlap above 0.5), its mean overlap, and by task the share of
            answers that are right word by word where every word before is.
        """
        device = self.model.extended.opening.device
        right: dict[str, list[bool]] = {}
        overlaps: list[float] = []
        for start in range(0, self.data.eval_pictures, 32):
            scenes = sample_scenes(min(32, self.data.eval_pictures - start), HELD_OUT, start)
            images = render(scenes, self.side).to(device)
            drawn = draw_box_tasks(scenes, self.data.questions, self.data.tasks, self.data.decimals)
            questions, targets = self._tokens([[(t.question, t.answer) for t in row] for row in drawn])
            hits = answered_right(self.model.answer_logits(images, questions.to(device)), targets.to(device))
            for row, hit in zip(drawn, hits, strict=True):
                for entry, ok in zip(row, hit, strict=True):
                    right.setdefault(entry.task, []).append(ok)
            overlaps += self._found(images, draw_box_tasks(scenes, 1, ("grounding",), self.data.decimals))
        found = sum(value > AGREES for value in overlaps) / max(1, len(overlaps))
        mean = sum(overlaps) / max(1, len(overlaps))
        return {"box_accuracy": found, "box_iou": mean} | {
            f"exact_match_{task}": sum(hits) / len(hits) for task, hits in sorted(right.items()) if task != "grounding"
        }

    def _found(self, images: Tensor, drawn: list[list[BoxTask]]) -> list[float]:
        """Overlap of the boxes that are found with those that are meant, 0 where the answer is none."""
        rows = [b for b, (entry,) in enumerate(drawn) if entry.task == "grounding"]
        asked = [f"{spelt(drawn[b][0].question)} {ASSISTANT}" for b in rows]
        answers = self.model.extended.decode(images[rows], asked, self.data.slot)
        out = []
        for b, answer in zip(rows, answers, strict=True):
            box = parse_box(answer.replace(" ", ""), (1, 1), self.data.decimals)
            meant = parse_box(drawn[b][0].answer, (1, 1), self.data.decimals)
            out.append(0.0 if box is None else float(overlap(torch.tensor(box), torch.tensor(meant))))
        return out
