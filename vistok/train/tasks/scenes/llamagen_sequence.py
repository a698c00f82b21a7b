"""What scenes teach a LlamaGen of sequences: the captions' facts, since a token has no place in the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.data.scenes import statements
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.train.sources import Draw, ScenesSource
from vistok.train.tasks.llamagen import LlamaGenObjective
from vistok.train.tasks.llamagen_sequence import LlamaGenSequenceData, LlamaGenSequenceTask
from vistok.train.tasks.scenes.captions import facts
from vistok.train.tasks.scenes.reader import FactReader


@dataclass(frozen=True, kw_only=True)
class SupervisedSequenceData(LlamaGenSequenceData):
    """Entries of ``data``, beside those of LlamaGenSequenceData.

    Attributes:
        supervision: weight of the captions' facts.
    """

    supervision: float


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


class SupervisedSequenceTask(LlamaGenSequenceTask):
    """The ``llamagen-sequence`` task with ``data.supervision``: see SupervisedSequenceData."""

    data_class = SupervisedSequenceData

    def objective(self, gpt: LlamaGen, text: TextEncoder | None) -> SupervisedSequence:
        if text is None:
            raise VistokError("'data.supervision' is about captions: leave it out, or train a generator of captions.")
        return SupervisedSequence(gpt, text, self.data.supervision)

    def condition(self, source: ScenesSource, draw: Draw) -> dict[str, Tensor]:
        said = statements(source.scenes(draw.index), draw.passes.tolist())
        words, mask = self.words([s.text for s in said])
        return {"input_ids": words, "attention_mask": mask, "facts": torch.tensor([facts(s) for s in said])}
