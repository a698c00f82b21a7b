"""Train a small READ on referring phrases of scenes (arXiv 2412.17741).

As published: LoRA on queries and values of the language model, a projection of <SEG> and the mask decoder, under
cross-entropy, mask and Dice losses. The decoder is small and learns from nothing, where the published one is SAM's. In
the embedded world the similarity map itself is supervised too: scenes have exact masks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.referring import Phrase, draw_phrases, phrase_masks
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import ASSISTANT
from vistok.projectors.grounding.masks import mask_iou, mask_losses
from vistok.projectors.grounding.points import similarity
from vistok.projectors.grounding.read import SEG, WHERE, ReadHead
from vistok.train.lora import Lora
from vistok.train.options import Fraction, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.answers import answer_loss
from vistok.train.tasks.scenes.extension import ExtendedLlava, ExtensionInit, ExtensionTask, slots

SLOT = 12
NOTHING = "no"
MASK_WEIGHT, DICE_WEIGHT = 2.0, 0.5


@dataclass(frozen=True, kw_only=True)
class ReadData:
    """Entries of ``data`` of the ``read`` task.

    Attributes:
        seed: the world that is trained on.
        phrases: about each picture.
        absent: share of them about what is not there.
        similarity: weight of the supervision of the similarity map.
        eval_pictures: how many held-out pictures are asked about.
    """

    seed: int
    phrases: int = 3
    absent: Fraction = 0.15
    similarity: float = 1.0
    eval_pictures: int = 128


@dataclass(frozen=True, kw_only=True)
class ReadModel:
    """Entries of ``model``.

    Attributes:
        lora: see Lora.
        prompt, inner, points, down_sample: see ReadHead.
    """

    lora: Lora = field(default_factory=Lora)
    prompt: int = 32
    inner: int = 32
    points: int = 16
    down_sample: int = 1


class ReadObjective(nn.Module):
    """The losses of READ.

    Args:
        extended: the LLaVA with <SEG>.
        head: projection and decoder.
        weight: of the supervision of the similarity map.
    """

    def __init__(self, extended: ExtendedLlava, head: ReadHead, weight: float):
        super().__init__()
        self.extended, self.head, self.weight = extended, head, weight

    def ground(self, images: Tensor, questions: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits of words [B, K, slot, V], similarity [B, K, N] and logits of masks [B, K, S, S].

        Args:
            images: [B, 3, S, S].
            questions: int64 [B, K, slot].
            at: place in each slot of the token that predicts <SEG>, int64 [B, K].
        """
        with torch.no_grad():
            visual, features = self.extended.look(images)
        seen, hidden, _ = self.extended.read(visual, questions)
        seg = hidden.gather(2, at[..., None, None].expand(-1, -1, 1, hidden.shape[-1]))[:, :, 0]
        scores = similarity(seen, seg).transpose(1, 2) / seen.shape[-1] ** 0.5
        count = questions.shape[1]
        pixels, patches = (x.repeat_interleave(count, 0) for x in (images, features))
        masks = self.head(pixels, patches, scores.flatten(0, 1), seg.flatten(0, 1)).unflatten(0, (-1, count))
        return self.extended.logits(hidden), scores, masks

    def forward(self, images: Tensor, questions: Tensor, targets: Tensor, at: Tensor, masks: Tensor, found: Tensor):
        logits, scores, drawn = self.ground(images, questions, at)
        answers = answer_loss(logits, targets)
        bce, dice = mask_losses(drawn[found].float(), masks[found])
        grid = round(scores.shape[-1] ** 0.5)
        shown = F.adaptive_avg_pool2d(masks[found], grid).flatten(1)
        shown = shown / shown.amax(1, keepdim=True).clamp(min=1e-3)
        map_loss = F.binary_cross_entropy_with_logits(scores[found].float(), shown)
        loss = answers + MASK_WEIGHT * bce + DICE_WEIGHT * dice + self.weight * map_loss
        parts = {"answers": answers, "mask": bce, "dice": dice, "similarity": map_loss}
        return loss, {name: value.detach() for name, value in parts.items()}


def asked(phrase: str) -> str:
    """Returns what is asked about a phrase, in words with blanks."""
    return f"{WHERE} is {phrase} ? {ASSISTANT}"


class ReadTask(ExtensionTask):
    """The ``read`` task: see ReadData, ReadModel and ExtensionInit."""

    kind, words, paper = "read", (SEG, WHERE), "2412.17741"

    def __init__(self, recipe: Recipe):
        self.data = read_options(ReadData, recipe.data, "data")
        self.shape = read_options(ReadModel, recipe.model, "model")
        check_training_seed(self.data.seed)
        extended = self.start(recipe, read_options(ExtensionInit, recipe.init, "init"), self.shape.lora)
        config = extended.base.config
        head = ReadHead(config.text_config.hidden_size, config.vision_config.hidden_size, **self.options())
        self.model = ReadObjective(extended, head, self.data.similarity)

    def options(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self.shape).items() if name != "lora"}

    def heads(self) -> dict[str, Tensor]:
        return self.model.head.state_dict()

    def _asked(self, drawn: list[list[Phrase]]) -> tuple[Tensor, Tensor, Tensor]:
        pairs = [[(asked(p.text), SEG if p.group >= 0 else NOTHING) for p in row] for row in drawn]
        questions, targets = slots(pairs, self.model.extended.ids, SLOT)
        at = torch.tensor([[len(question.split()) - 1 for question, _ in row] for row in pairs])
        return questions, targets, at

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = sample_scenes(rows.stop - rows.start, self.data.seed, start)
        drawn = draw_phrases(scenes, self.data.phrases, self.data.absent)
        questions, targets, at = self._asked(drawn)
        return {
            "images": render(scenes, self.side),
            "questions": questions,
            "targets": targets,
            "at": at,
            "masks": phrase_masks(scenes, drawn, self.side),
            "found": torch.tensor([[p.group >= 0 for p in row] for row in drawn]),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns mean mask IoU of held-out phrases by kind, overall IoU (cIoU), and the share where <SEG> is right."""
        device = self.model.extended.opening.device
        ious: dict[str, list[float]] = {}
        both, either, right = 0, 0, []
        for start in range(0, self.data.eval_pictures, 32):
            scenes = sample_scenes(min(32, self.data.eval_pictures - start), HELD_OUT, start)
            drawn = draw_phrases(scenes, self.data.phrases, self.data.absent)
            questions, targets, at = (x.to(device) for x in self._asked(drawn))
            logits, _, masks = self.model.ground(render(scenes, self.side).to(device), questions, at)
            said = logits.argmax(-1).gather(2, at[..., None])[..., 0]
            right += (said == targets.gather(2, at[..., None])[..., 0]).flatten().tolist()
            true = phrase_masks(scenes, drawn, self.side) > 0.5
            drawn_masks = masks.cpu() > 0
            values = mask_iou(drawn_masks, true)
            for b, row in enumerate(drawn):
                for k, phrase in enumerate(row):
                    if phrase.group >= 0:
                        ious.setdefault(phrase.kind, []).append(float(values[b, k]))
                        both += int((drawn_masks[b, k] & true[b, k]).sum())
                        either += int((drawn_masks[b, k] | true[b, k]).sum())
        everything = [value for found in ious.values() for value in found]
        return {
            "mask_iou": sum(everything) / len(everything),
            "mask_ciou": both / max(1, either),
            "seg_said": sum(right) / len(right),
        } | {f"mask_iou_{kind}": sum(found) / len(found) for kind, found in sorted(ious.items())}
