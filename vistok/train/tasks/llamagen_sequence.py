"""Train a text-to-image LlamaGen on the tokens of a 1D tokenizer, coarse to fine, as FlexTok's generators are
(arXiv 2502.13967, section 4).

It is the ``llamagen`` task over ``layout: sequence``: positions are one-dimensional, and supervision is left with the
captions' facts, since a token has no place in the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import Scenes, statements
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.text import TextEncoder, left_pad
from vistok.tokenizers.load import load_tokenizer
from vistok.train.recipe import Recipe
from vistok.train.tasks.llamagen import LlamaGenTask, caption_encoder
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
        encoded = self.text_encoder.encoder(input_ids=input_ids, attention_mask=attention_mask)
        features, mask = left_pad(encoded.last_hidden_state, attention_mask)
        states = self.gpt.states(tokens[:, :-1], features, mask)
        logits = self.gpt.head(self.gpt.norm(states[-1])).float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        told = self.reader(states[len(states) // 2], facts)
        metrics = {"codes": losses.mean(), "first": losses[:, 0].mean(), "last": losses[:, -1].mean(), "told": told}
        return losses.mean() + self.supervision * told, {name: x.detach() for name, x in metrics.items()}


class LlamaGenSequenceTask(LlamaGenTask):
    """The ``llamagen-sequence`` task.

    ``init.vq`` names the 1D tokenizer, ``data.supervision`` is the weight of the facts, zero by default; the rest is as
    of ``llamagen``.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.vq = load_tokenizer(recipe.init["vq"]).tokenizer.requires_grad_(False)
        text = caption_encoder(recipe).requires_grad_(recipe.data.get("tune_captions", False))
        if "gpt" in recipe.init:
            gpt = LlamaGen.from_pretrained(recipe.init["gpt"])
        else:
            can = self.vq.capabilities
            shape = {"vocab_size": can.codebook_size, "block_size": can.lengths[-1], "layout": can.layout}
            condition = {"model_type": "t2i", "caption_dim": text.dim, "cls_token_num": text.max_length}
            gpt = LlamaGen(LlamaGenConfig(**shape, **condition, **recipe.model))
        self.model = SequenceObjective(gpt, text, recipe.data.get("supervision", 0.0))
        self._prepare(gpt.config.block_size)

    def _told(self, scenes: Scenes, variant: int = 0) -> dict[str, Tensor]:
        return self._captions(statements(scenes, variant))
