"""Train a small Visual Perception Token model on questions about small objects (arXiv 2502.17425).

The picture is too fine for the tower: it is seen at half its size, and the region that the model names is seen again in
full. Both turns are learnt in one sequence. As in the release, half of the batches hide the first turn from the second,
so that the answer must come through the second look.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resized_crop

from vistok.data.scenes import render, sample_scenes, shrink
from vistok.data.scenes.details import asked_about, detail_boxes, draw_details
from vistok.data.scenes.render import boxes
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import ASSISTANT
from vistok.data.scenes.world import Scenes
from vistok.errors import VistokError
from vistok.ops.noise import counter_uniform
from vistok.projectors.grounding.control import REGION_TOKENS, parse_regions, region_words, squared
from vistok.train.lora import Lora
from vistok.train.options import read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.answers import answer_loss
from vistok.train.tasks.scenes.extension import (
    BoxReader,
    ExtendedLlava,
    ExtensionInit,
    ExtensionTask,
    beginnings,
    slots,
)
from vistok.train.tasks.scenes.packing import middle_and_last

FIRST_SLOT, SECOND_SLOT = 15, 10
HIDDEN = 0.5  # share of batches whose second turn does not see the first


@dataclass(frozen=True, kw_only=True)
class VptData:
    """Entries of ``data`` of the ``vpt`` task.

    Attributes:
        seed: the world that is trained on.
        side: of the full picture in pixels.
        scale: least and greatest factor of the objects' radii.
        supervision: weight of reading the object's box, as numbers, from the middle of the language model where the
            region begins.
        eval_pictures: how many held-out pictures are asked about.
    """

    seed: int
    side: int = 128
    scale: tuple[float, float] = (0.3, 0.6)
    supervision: float = 0.0
    eval_pictures: int = 256


@dataclass(frozen=True, kw_only=True)
class VptModel:
    """Entries of ``model``.

    Attributes:
        lora: see Lora.
    """

    lora: Lora = field(default_factory=Lora)


class VptObjective(nn.Module):
    """Cross-entropy of the region's tokens and of the answer behind the second look, and boxes as numbers.

    Args:
        extended: the LLaVA with control tokens.
        supervision: weight of the numbers, which serve training alone; nothing reads them at 0.
    """

    def __init__(self, extended: ExtendedLlava, supervision: float):
        super().__init__()
        self.extended, self.supervision = extended, supervision
        self.numbers = BoxReader(extended.base.config.text_config.hidden_size) if supervision else None

    def answer_logits(
        self, images: Tensor, crops: Tensor, first: Tensor, second: Tensor, length: Tensor, hide: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits behind the tokens of the first turn [B, FIRST_SLOT, V] and of the second [B, SECOND_SLOT, V],
        and the first's states behind half of the layers [B, FIRST_SLOT, D].

        Args:
            images, crops: what is seen first and second [B, 3, S, S].
            first, second: tokens of the turns behind their pictures, int64 [B, slot].
            length: tokens of the first turn, int64 [B]; padding behind them is cut.
            hide: whether the second turn does not see the first, bool [B].
        """
        extended = self.extended
        with torch.no_grad():
            visual = extended.look(torch.cat([images, crops]))[0].chunk(2)
        opening = extended.embed(extended.opening).expand(len(images), -1, -1)
        user = extended.embed(extended.opening[1:]).expand(len(images), -1, -1)
        looked = [v.to(opening.dtype) for v in visual]
        parts = [opening, looked[0], extended.embed(first), user, looked[1], extended.embed(second)]
        sizes = [part.shape[1] for part in parts]
        embeds = torch.cat(parts, 1)
        place = torch.arange(embeds.shape[1], device=embeds.device)
        begins = sizes[0] + sizes[1]
        turn = begins + sizes[2]
        present = ~((place >= begins + length[:, None]) & (place < turn))
        allowed = (place[:, None] >= place) & present[:, None]
        allowed = allowed & ~(hide[:, None, None] & (place[:, None] >= turn) & (place >= 1) & (place < turn))
        allowed = allowed | torch.eye(len(place), dtype=torch.bool, device=place.device)
        positions = (present.long().cumsum(1) - 1).clamp(min=0)
        inner, hidden = middle_and_last(extended.base.model.language_model, embeds, allowed[:, None], positions)
        logits = extended.logits(torch.cat([hidden[:, begins:turn], hidden[:, -sizes[5] :]], 1))
        return logits[:, : sizes[2]], logits[:, sizes[2] :], inner[:, begins:turn]

    def forward(
        self,
        images: Tensor,
        crops: Tensor,
        first: Tensor,
        second: Tensor,
        length: Tensor,
        hide: Tensor,
        region_targets: Tensor,
        answer_targets: Tensor,
        boxes: Tensor,
    ):
        regions, answers, inner = self.answer_logits(images, crops, first, second, length, hide)
        where, what = answer_loss(regions, region_targets), answer_loss(answers, answer_targets)
        loss, parts = where + what, {"regions": where.detach(), "answers": what.detach()}
        if self.numbers is not None:
            numbers = self.numbers(beginnings(inner[:, None], region_targets[:, None]), boxes[:, None])
            loss, parts["numbers"] = loss + self.supervision * numbers, numbers.detach()
        return loss, parts


def look_again(images: Tensor, boxes: list[tuple[int, int, int, int]], side: int) -> Tensor:
    """Returns parts of pictures [B, 3, H, W] at another side, [B, 3, side, side]."""
    cut = [
        resized_crop(image, y0, x0, y1 - y0, x1 - x0, [side, side], antialias=True)
        for image, (x0, y0, x1, y1) in zip(images, boxes, strict=True)
    ]
    return torch.stack(cut)


class VptTask(ExtensionTask):
    """The ``vpt`` task: see VptData, VptModel and ExtensionInit."""

    kind, words, paper = "vpt", REGION_TOKENS, "2502.17425"
    task = "visual-question-answering"

    def __init__(self, recipe: Recipe):
        self.data = read_options(VptData, recipe.data, "data")
        self.shape = read_options(VptModel, recipe.model, "model")
        check_training_seed(self.data.seed)
        low, high = self.data.scale
        if not 0 < low <= high <= 1:
            raise VistokError(f"data.scale is {low} to {high}: give a range within 0 to 1.")
        init = read_options(ExtensionInit, recipe.init, "init")
        self.model = VptObjective(self.start(recipe, init, self.shape.lora), self.data.supervision)

    def _scenes(self, count: int, seed: int, start: int) -> Scenes:
        scenes = sample_scenes(count, seed, start)
        low, high = self.data.scale
        return shrink(scenes, low + (high - low) * counter_uniform(seed, scenes.index, 77))

    def _seen(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(-1, 1)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = self._scenes(rows.stop - rows.start, self.data.seed, start)
        images = render(scenes, self.data.side)
        details = draw_details(scenes)
        size = (self.data.side, self.data.side)
        true = detail_boxes(scenes, details, self.data.side)
        words = [region_words(box, size) for box in true.tolist()]
        looked = [squared(parse_regions("".join(row), size)[0], size) for row in words]
        asked = [f"{detail.question.replace('?', ' ?')} {ASSISTANT}" for detail in details]
        ids = self.model.extended.ids
        first, region_targets = slots([[(q, " ".join(w))] for q, w in zip(asked, words, strict=True)], ids, FIRST_SLOT)
        second, answer_targets = slots([[(q, d.answer)] for q, d in zip(asked, details, strict=True)], ids, SECOND_SLOT)
        hide = bool(counter_uniform(self.data.seed, step, 78) < HIDDEN)
        return {
            "images": self._seen(images),
            "crops": look_again(images, looked, self.side).clamp(-1, 1),
            "first": first[:, 0],
            "second": second[:, 0],
            "length": torch.tensor([len(q.split()) + len(w) for q, w in zip(asked, words, strict=True)]),
            "hide": torch.full((len(details),), hide),
            "region_targets": region_targets[:, 0],
            "answer_targets": answer_targets[:, 0],
            "boxes": (true / self.data.side).float(),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Answers about held-out small objects.

        Returns:
            Share that is right with the second look, by kind too, with one look of the model below, and with a second
            look where it should be; and the share of regions that hold an object which the question is about.
        """
        extended, size = self.model.extended, (self.data.side, self.data.side)
        hits: dict[str, list[bool]] = {}
        for start in range(0, self.data.eval_pictures, 32):
            scenes = self._scenes(min(32, self.data.eval_pictures - start), HELD_OUT, start)
            images = render(scenes, self.data.side).to(extended.opening.device)
            seen, details = self._seen(images), draw_details(scenes)
            asked = [f"{detail.question.replace('?', ' ?')} {ASSISTANT}" for detail in details]
            true = detail_boxes(scenes, details, self.data.side)
            said = extended.decode(seen, asked, FIRST_SLOT)
            words = [region_words(box, size) for box in true.tolist()]
            answers = {
                "": self._again(images, seen, asked, said),
                "_right_region": self._again(images, seen, asked, [" ".join(row) for row in words]),
                "_one_look": self._below(seen, asked),
            }
            for name, row in answers.items():
                right = [answer == detail.answer for answer, detail in zip(row, details, strict=True)]
                hits.setdefault(f"exact_match{name}", []).extend(right)
                if not name:
                    for detail, ok in zip(details, right, strict=True):
                        hits.setdefault(f"exact_match_{detail.kind}", []).append(ok)
            every = boxes(scenes, self.data.side).clamp(0, self.data.side)
            for text, row, wanted in zip(said, every, asked_about(scenes, details), strict=True):
                found = _region(text, size)
                inside = found is not None and any(_holds(found, box) for box in row[wanted])
                hits.setdefault("region_holds_object", []).append(inside)
        return {name: sum(row) / len(row) for name, row in hits.items()}

    def _again(self, images: Tensor, seen: Tensor, asked: list[str], said: list[str]) -> list[str]:
        """First words of the answers behind the regions that were said; none where there is no region."""
        extended, size = self.model.extended, (self.data.side, self.data.side)
        found = [_region(text, size) for text in said]
        whole = (0, 0, *size)
        looked = [whole if box is None else squared(box, size) for box in found]
        crops = look_again(images, looked, self.side).clamp(-1, 1)
        pairs = [[(q, text)] for q, text in zip(asked, said, strict=True)]
        first, _ = slots(pairs, extended.ids, FIRST_SLOT)
        second, _ = slots([[(q, "")] for q in asked], extended.ids, SECOND_SLOT)
        length = torch.tensor([len(q.split()) + len(text.split()) for ((q, text),) in pairs])
        given = [x.to(images.device) for x in (first[:, 0], second[:, 0], length)]
        hide = torch.zeros(len(asked), dtype=torch.bool, device=images.device)
        logits = self.model.answer_logits(seen, crops, *given, hide)[1].argmax(-1)
        names = {number: word for word, number in extended.ids.items()}
        at = [len(q.split()) - 1 for q in asked]
        return [
            "" if box is None else names[int(row[place])] for box, row, place in zip(found, logits, at, strict=True)
        ]

    def _below(self, seen: Tensor, asked: list[str]) -> list[str]:
        """Answers of the LLaVA itself, without adapters and new words, from one look."""
        with self.model.extended.llava.disable_adapter():
            return self.model.extended.decode(seen, asked, SECOND_SLOT, says_new=False)


def _region(text: str, size: tuple[int, int]) -> tuple[float, ...] | None:
    try:
        found = parse_regions(text, size)
    except VistokError:
        return None
    return found[0] if found else None


def _holds(outer: tuple[float, ...], box: Tensor) -> bool:
    x0, y0, x1, y1 = box.tolist()
    return outer[0] <= x0 and outer[1] <= y0 and x1 <= outer[2] and y1 <= outer[3]
