"""What scenes teach a LlamaGen of sequences: captions' facts, and, where tokens have places, what grids are taught."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes import Scenes
from vistok.data.scenes.language import Statement
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.train.tasks.llamagen import LlamaGenObjective
from vistok.train.tasks.llamagen_sequence import LlamaGenSequenceData, LlamaGenSequenceTask
from vistok.train.tasks.scenes.captions import facts
from vistok.train.tasks.scenes.llamagen import SupervisedLlamaGenData, SupervisedLlamaGenTask
from vistok.train.tasks.scenes.reader import FactReader


@dataclass(frozen=True, kw_only=True)
class SupervisedSequenceData(SupervisedLlamaGenData, LlamaGenSequenceData):
    """Entries of ``data``: those of SupervisedLlamaGenData and LlamaGenSequenceData.

    Without ``cells`` tokens have no places, ``supervision`` can weigh ``told`` alone, and nothing is contrasted.
    """


class ToldSequence(LlamaGenObjective):
    """Cross-entropy of tokens given captions, and of the captions' facts in a middle layer.

    Args:
        gpt: the generator.
        text: the caption encoder.
        told: weight of the facts.
    """

    def __init__(self, gpt: LlamaGen, text: TextEncoder, told: float):
        super().__init__(gpt, text)
        self.told = told
        self.reader = FactReader(gpt.config.dim)

    def forward(self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, facts: Tensor):
        """Returns the loss of tokens [B, N] and its parts."""
        states = self.states(tokens, input_ids=input_ids, attention_mask=attention_mask)
        losses = F.cross_entropy(self.logits(states).transpose(1, 2), tokens, reduction="none")
        told = self.reader(states[len(states) // 2], facts)
        metrics = {"codes": losses.mean(), "first": losses[:, 0].mean(), "last": losses[:, -1].mean(), "told": told}
        return losses.mean() + self.told * told, {name: x.detach() for name, x in metrics.items()}


class SupervisedSequenceTask(SupervisedLlamaGenTask, LlamaGenSequenceTask):
    """The ``llamagen-sequence`` task with ``data.supervision``: see SupervisedSequenceData."""

    data_class = SupervisedSequenceData

    def objective(self, gpt: LlamaGen, text: TextEncoder | None) -> LlamaGenObjective:
        if self.data.cells is not None:
            return super().objective(gpt, text)
        if text is None or set(self.data.supervision) != {"told"} or self.data.binding:
            raise VistokError(
                "without 'data.cells' tokens have no places: 'data.supervision' can weigh what captions tell ('told') "
                "alone, and 'data.binding' must be left out."
            )
        self.binding, self.drawn = 0, self.recipe.batch_size
        return ToldSequence(gpt, text, self.data.supervision["told"])

    def lattice(self, gpt: LlamaGen) -> tuple[int, Tensor]:
        return self.data.cells, self.cell_order(gpt.config.block_size)

    def told(self, scenes: Scenes, said: list[Statement], variant: int, pairs: int) -> dict[str, Tensor]:
        if self.data.cells is not None:
            return super().told(scenes, said, variant, pairs)
        words, mask = self.words([s.text for s in said])
        return {"input_ids": words, "attention_mask": mask, "facts": torch.tensor([facts(s) for s in said])}
