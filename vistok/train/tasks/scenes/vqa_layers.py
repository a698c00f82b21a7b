"""Train a LLaVA's language model to read pictures in another way: in a mixture of depths, or along concentric rings.

Both are stored as differences: routers and LoRA factors (p-MoD, arXiv 2412.04449), or LoRA factors alone (concentric
causal attention, arXiv 2410.15926, whose published weights are those of a plain LLaVA too). The tower stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vistok.data.scenes import Scenes, render
from vistok.data.scenes.splits import check_training_seed
from vistok.data.scenes.vqa import Question, draw_questions, question_tokens
from vistok.data.scenes.vqa_splits import POPE_SPLITS, pope_questions, split_questions, split_scenes
from vistok.models.attach import Attachment
from vistok.ops.concentric import concentric_positions
from vistok.projectors.apply.depths import DepthMixture
from vistok.projectors.methods.pmod import PMod, progressive_ratios
from vistok.train.lora import EVERY_MAP, Lora
from vistok.train.options import Fraction, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.answers import answer_loss, answered_right, shares_right
from vistok.train.tasks.scenes.extension import ExtendedLlava, ExtensionInit, ExtensionTask
from vistok.train.tasks.scenes.packing import packed_mask
from vistok.train.tasks.scenes.vqa import VqaData, training_scenes


class LayersObjective(nn.Module):
    """Cross-entropy of answers.

    Args:
        extended: the LLaVA with adapters.
    """

    def __init__(self, extended: ExtendedLlava):
        super().__init__()
        self.extended = extended

    def answer_logits(self, images: Tensor, questions: Tensor) -> Tensor:
        """Returns logits behind every token of questions [B, K, SLOT] about pictures [B, 3, S, S]."""
        with torch.no_grad():
            visual, _ = self.extended.look(images)
        return self.extended.logits(self.extended.read(visual, questions)[1])

    def forward(self, images: Tensor, questions: Tensor, targets: Tensor):
        loss = answer_loss(self.answer_logits(images, questions), targets)
        return loss, {"answers": loss.detach()}


class LayersTask(ExtensionTask):
    """What the two tasks share: questions, and their held-out answers."""

    task = "visual-question-answering"

    def begin(self, recipe: Recipe, lora: Lora) -> ExtendedLlava:
        """Returns the adapted LLaVA at the beginning of a run."""
        self.data = read_options(VqaData, recipe.data, "data")
        check_training_seed(self.data.seed)
        return self.start(recipe, read_options(ExtensionInit, recipe.init, "init"), lora)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = training_scenes(self.data, rows.stop - rows.start, start)
        drawn = draw_questions(scenes, self.data.questions, kinds=self.data.kinds or None)
        questions, targets = question_tokens(drawn)
        return {"images": render(scenes, self.side), "questions": questions, "targets": targets}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns shares of right answers about held-out scenes by kind and about hard ones, and POPE's F1 on these."""
        count, each = self.data.eval_pictures, self.data.questions
        plain, hard = split_scenes("plain", count), split_scenes("hard", count)
        drawn = draw_questions(plain, each, kinds=dict.fromkeys(self.data.kinds, 1.0) or None)
        harder = split_questions(hard, "hard", each, None)
        out = shares_right(drawn, self._right(plain, drawn))
        out["hard"] = shares_right(harder, self._right(hard, harder))["exact_match"]
        for split in POPE_SPLITS:
            rows = pope_questions(hard, split)
            longest = max(map(len, rows))
            filled = [row + row[:1] * (longest - len(row)) for row in rows]  # as many about each picture
            out[f"pope_{split}"] = _f1(rows, self._right(hard, filled))
        return out

    def _right(self, scenes: Scenes, drawn: list[list[Question]]) -> list[list[bool]]:
        """Whether each question about each scene is answered right."""
        device, hits = self.model.extended.opening.device, []
        for start in range(0, len(scenes), 32):
            rows = slice(start, start + 32)
            questions, targets = (x.to(device) for x in question_tokens(drawn[rows]))
            hits += answered_right(
                self.model.answer_logits(render(scenes[rows], self.side).to(device), questions), targets
            )
        return hits


def _f1(rows: list[list[Question]], hits: list[list[bool]]) -> float:
    """F1 of "yes", from whether yes-or-no questions were answered right."""
    pairs = [pair for row, hit in zip(rows, hits, strict=True) for pair in zip(row, hit, strict=False)]
    found = sum(question.answer == "yes" and right for question, right in pairs)
    return 2 * found / max(1, 2 * found + sum(not right for _, right in pairs))


@dataclass(frozen=True, kw_only=True)
class MixtureModel:
    """Entries of ``model`` of the ``vqa-pmod`` task.

    Attributes:
        lora: see Lora.
        average, high, low, kind: of the schedule, see ``progressive_ratios``.
        norm: see RouterNorm.
    """

    lora: Lora = field(default_factory=Lora)
    average: Fraction = 0.5
    high: Fraction = 0.85
    low: Fraction = 0.15
    kind: str = "shiftedcos"
    norm: str = "tanh_0.2_1"


class MixedLlava(ExtendedLlava):
    """A LLaVA whose visual tokens skip layers, once it has ``routers``."""

    def mix(self, routers: PMod) -> None:
        """Puts routers into the language model."""
        self.routers = routers
        decoder = self.base.model.language_model
        self.mixture = DepthMixture(decoder, routers, Attachment(self.base), earliest=1)

    def read(self, visual: Tensor, questions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens = visual.shape[:2]
        place = torch.arange(len(self.opening) + tokens + questions[0].numel(), device=visual.device)
        seen = (place >= len(self.opening)) & (place < len(self.opening) + tokens)
        self.mixture.begin(seen.expand(batch, -1), None, len(place))
        try:
            return super().read(visual, questions)
        finally:
            self.mixture.end()


class PModTask(LayersTask):
    """The ``vqa-pmod`` task: see MixtureModel, VqaData and ExtensionInit."""

    kind, words, paper = "p-mod", (), "2412.04449"
    extended = MixedLlava

    def __init__(self, recipe: Recipe):
        shape = read_options(MixtureModel, recipe.model, "model")
        extended = self.begin(recipe, shape.lora)
        text = extended.base.config.text_config
        ratios = progressive_ratios(text.num_hidden_layers, shape.average, shape.high, shape.low, shape.kind)
        extended.mix(PMod(text.hidden_size, ratios, shape.norm))
        self.model = LayersObjective(extended)

    def heads(self) -> dict[str, Tensor]:
        return self.model.extended.routers.state_dict()

    def options(self) -> dict[str, Any]:
        return self.model.extended.routers.options()


@dataclass(frozen=True, kw_only=True)
class ConcentricModel:
    """Entries of ``model`` of the ``vqa-concentric`` task.

    Attributes:
        lora: see Lora.
        concentric: whether pictures are read along rings; if not, this is the control of equal training.
    """

    lora: Lora = field(default_factory=lambda: Lora(modules=EVERY_MAP))
    concentric: bool = True


class RingedLlava(ExtendedLlava):
    """A LLaVA that reads pictures along rings."""

    rings = True

    def layout(self, present: Tensor, count: int, slot: int) -> tuple[Tensor, Tensor]:
        mask, positions = packed_mask(present, count, slot)
        if not self.rings:
            return mask, positions
        prefix, opening = present.shape[1], len(self.opening)
        side = round((prefix - opening) ** 0.5)
        seen = torch.arange(prefix, device=present.device) >= opening
        ringed = concentric_positions(seen.expand_as(present), present, side, side)
        mask = mask.clone()
        mask[:, :, :prefix, :prefix] = (ringed[:, None, :] <= ringed[:, :, None])[:, None]
        behind = positions[:, prefix:] - prefix + ringed.amax(1, keepdim=True) + 1
        return mask, torch.cat([ringed, behind], 1)


class ConcentricTask(LayersTask):
    """The ``vqa-concentric`` task: see ConcentricModel, VqaData and ExtensionInit."""

    kind, words, paper = "concentric", (), "2410.15926"
    extended = RingedLlava

    def __init__(self, recipe: Recipe):
        self.shape = read_options(ConcentricModel, recipe.model, "model")
        extended = self.begin(recipe, self.shape.lora)
        extended.rings = self.shape.concentric
        self.model = LayersObjective(extended)

    def options(self) -> dict[str, Any]:
        return {"concentric": self.shape.concentric}
