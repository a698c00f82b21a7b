"""Train a text-to-image LlamaGen on the tokens of a 1D tokenizer, coarse to fine, as FlexTok's generators are
(arXiv 2502.13967, section 4).

It is the ``llamagen`` task over ``layout: sequence``: positions are one-dimensional, and supervision is left with the
captions' facts, since a token has no place in the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import Scenes
from vistok.data.scenes.language import Statement
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.tokenizers.load import load_tokenizer
from vistok.train.tasks.captions import facts
from vistok.train.tasks.llamagen import LlamaGenTask, captioned_states
from vistok.train.tasks.scene_reader import FactReader


class SequenceObjective(nn.Module):
    """Cross-entropy of tokens given captions, and of the captions' facts in a middle layer.

    The generator itself drops conditions at random.

    Args:
        gpt: the generator.
        text: the caption encoder.
        supervision: weight of the facts.
    """

    def __init__(self, gpt: LlamaGen, text: TextEncoder, supervision: float):
        super().__init__()
        self.gpt, self.text_encoder, self.supervision = gpt, text, supervision
        self.reader = FactReader(gpt.config.dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, facts: Tensor):
        """Loss of tokens [B, N]."""
        states = captioned_states(self.gpt, self.text_encoder, input_ids, attention_mask, tokens)
        logits = self.gpt.head(self.gpt.norm(states[-1])).float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        told = self.reader(states[len(states) // 2], facts)
        metrics = {"codes": losses.mean(), "first": losses[:, 0].mean(), "last": losses[:, -1].mean(), "told": told}
        return losses.mean() + self.supervision * told, {name: x.detach() for name, x in metrics.items()}


class LlamaGenSequenceTask(LlamaGenTask):
    """The ``llamagen-sequence`` task.

    ``init.vq`` names the 1D tokenizer, of whose tokens the generator draws the first ``data.tokens``, all by default;
    ``data.supervision`` is the weight of the facts, zero by default; the rest is as of ``llamagen``.
    """

    def _tokenizer(self) -> nn.Module:
        return load_tokenizer(self.recipe.init["vq"]).tokenizer

    def _shape(self) -> dict[str, int | str]:
        can = self.vq.capabilities
        tokens = self.recipe.data.get("tokens", can.lengths[-1])
        can.check_length(tokens, can.lengths[-1])
        return {"vocab_size": can.codebook_size, "block_size": tokens, "layout": can.layout}

    def _objective(self, gpt: LlamaGen, text: TextEncoder) -> nn.Module:
        return SequenceObjective(gpt, text, self.recipe.data.get("supervision", 0.0))

    def _extract(self, seed: int, start: int, count: int) -> Tensor:
        return super()._extract(seed, start, count)[:, : self.model.gpt.config.block_size]

    def _told(self, scenes: Scenes, said: list[Statement], variant: int, pairs: int) -> dict[str, Tensor]:
        words, mask = self._words(said)
        return {"input_ids": words, "attention_mask": mask, "facts": torch.tensor([facts(s) for s in said])}
