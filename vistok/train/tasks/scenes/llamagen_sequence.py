"""What scenes teach a LlamaGen of sequences: the captions' facts, and, where tokens have places, the scenes' plans."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes import render, sample_scenes, statements
from vistok.errors import VistokError, unknown_name
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.train.sources import Draw, ScenesSource
from vistok.train.tasks.llamagen import LlamaGenObjective
from vistok.train.tasks.llamagen_sequence import LlamaGenSequenceData, LlamaGenSequenceTask
from vistok.train.tasks.scenes.captions import facts
from vistok.train.tasks.scenes.plans import plan
from vistok.train.tasks.scenes.reader import FactReader, SceneReader, code_colours, colour_loss

COUNTED = 1024  # scenes in which is counted what codes show; each has a quarter of the codes of llamagen-mini's
TERMS = ("now", "left", "next", "colour")


@dataclass(frozen=True, kw_only=True)
class SupervisedSequenceData(LlamaGenSequenceData):
    """Entries of ``data``, beside those of LlamaGenSequenceData.

    Attributes:
        supervision: weight of the captions' facts.
        scene: weights of what ``SceneReader`` reads and of ``colour_loss`` (``colour``), by name; tokens need places
            (``cells``).
    """

    supervision: float
    scene: dict[str, float] = field(default_factory=dict)


class SupervisedSequence(LlamaGenObjective):
    """Cross-entropy of tokens given captions, and of the captions' facts in a middle layer.

    Args:
        gpt: the generator.
        text: the caption encoder.
        supervision: weight of the facts.
    """

    def __init__(self, gpt: LlamaGen, text: TextEncoder, supervision: float):
        super().__init__(gpt, text)
        self.supervision = supervision
        self.reader = FactReader(gpt.config.dim)

    def forward(self, tokens: Tensor, facts: Tensor, **condition: Tensor):
        """Returns the loss of tokens [B, N] and its parts."""
        states = self.states(tokens, **condition)
        losses = self.losses(states, tokens)
        told = self.reader(states[len(states) // 2], facts)
        metrics = {"codes": losses.mean(), "first": losses[:, 0].mean(), "last": losses[:, -1].mean(), "told": told}
        return losses.mean() + self.supervision * told, {name: x.detach() for name, x in metrics.items()}


class PlannedSequence(LlamaGenObjective):
    """Cross-entropy of tokens given captions, what tokens show, and the plans and facts of ``SceneReader``.

    Args:
        gpt: the generator.
        text: the caption encoder.
        order: cells of the tokens, [n].
        grid: side of the grid of cells.
        colours: what each code shows, see ``code_colours``.
        weights: of the terms, by name.
    """

    def __init__(
        self, gpt: LlamaGen, text: TextEncoder, order: Tensor, grid: int, colours: Tensor, weights: dict[str, float]
    ):
        super().__init__(gpt, text)
        self.reader = SceneReader(gpt.config.dim, grid, order)
        self.weights = weights
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, **scene: Tensor):
        """Returns the loss of tokens [B, N] and its parts; ``scene`` is what ``SceneReader`` is told."""
        states = self.states(tokens, input_ids=input_ids, attention_mask=attention_mask)
        read = self.reader(states[len(states) // 2], **scene)
        logits = self.gpt.head(self.gpt.norm(states[-1])).float()
        loss = F.cross_entropy(logits.transpose(1, 2), tokens)
        read["colour"] = colour_loss(logits, tokens, self.colours)
        metrics = {"codes": loss.detach(), **{name: x.detach() for name, x in read.items()}}
        return loss + sum(weight * read[name] for name, weight in self.weights.items()), metrics


class SupervisedSequenceTask(LlamaGenSequenceTask):
    """The ``llamagen-sequence`` task with ``data.supervision``: see SupervisedSequenceData."""

    data_class = SupervisedSequenceData

    def objective(self, gpt: LlamaGen, text: TextEncoder | None) -> LlamaGenObjective:
        if text is None:
            raise VistokError("'data.supervision' is about captions: leave it out, or train a generator of captions.")
        if not self.data.scene:
            return SupervisedSequence(gpt, text, self.data.supervision)
        if strange := [name for name in self.data.scene if name not in TERMS]:
            raise unknown_name("term of 'data.scene'", strange[0], list(TERMS))
        if self.data.cells is None:
            raise VistokError("'data.scene' is about tokens that have places: say which in 'data.cells'.")
        self.order = self.cell_order(gpt.config.block_size)
        scenes = sample_scenes(COUNTED, self.data.seed)
        with torch.no_grad():
            codes = torch.cat([self.vq.encode(part) for part in render(scenes, self.data.size).split(64)])
        shown = plan(scenes, self.data.cells, self.data.size, self.order).cells
        colours = code_colours(codes[:, : len(self.order)], shown, gpt.config.vocab_size)
        weights = self.data.scene | {"told": self.data.supervision}
        return PlannedSequence(gpt, text, self.order, self.data.cells, colours, weights)

    def condition(self, source: ScenesSource, draw: Draw) -> dict[str, Tensor]:
        scenes = source.scenes(draw.index)
        said = statements(scenes, draw.passes.tolist())
        words, mask = self.words([s.text for s in said])
        told = {"input_ids": words, "attention_mask": mask, "facts": torch.tensor([facts(s) for s in said])}
        if self.data.scene:
            told |= plan(scenes, self.data.cells, self.data.size, self.order)._asdict()
        return told
