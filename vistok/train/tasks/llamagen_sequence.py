"""Train a text-to-image LlamaGen on the tokens of a 1D tokenizer, coarse to fine, as FlexTok's generators are
(arXiv 2502.13967, section 4).

It is the ``llamagen`` task over ``layout: sequence``: positions are one-dimensional, and there is no plan of cells for
supervision, since a token has no place in the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import captions, sample_scenes
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.text import TextEncoder, left_pad
from vistok.tokenizers.load import load_tokenizer
from vistok.train.recipe import Recipe
from vistok.train.tasks.llamagen import LlamaGenTask, caption_encoder
from vistok.train.tasks.vq import HELD_OUT_SEED


class SequenceObjective(nn.Module):
    """Cross-entropy of tokens [B, N] given captions; the generator itself drops conditions at random."""

    def __init__(self, gpt: LlamaGen, text: TextEncoder):
        super().__init__()
        self.gpt, self.text_encoder = gpt, text

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor):
        encoded = self.text_encoder.encoder(input_ids=input_ids, attention_mask=attention_mask)
        features, mask = left_pad(encoded.last_hidden_state, attention_mask)
        logits = self.gpt(tokens[:, :-1], features, mask).float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return losses.mean(), {"first": losses[:, 0].mean().detach(), "last": losses[:, -1].mean().detach()}


class LlamaGenSequenceTask(LlamaGenTask):
    """The ``llamagen-sequence`` task: ``init.vq`` names the 1D tokenizer, the rest is as of ``llamagen``."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.vq = load_tokenizer(recipe.init["vq"]).tokenizer.requires_grad_(False)
        text = caption_encoder(recipe).requires_grad_(False)
        if "gpt" in recipe.init:
            gpt = LlamaGen.from_pretrained(recipe.init["gpt"])
        else:
            can = self.vq.capabilities
            shape = {"vocab_size": can.codebook_size, "block_size": can.lengths[-1], "layout": can.layout}
            condition = {"model_type": "t2i", "caption_dim": text.dim, "cls_token_num": text.max_length}
            gpt = LlamaGen(LlamaGenConfig(**shape, **condition, **recipe.model))
        self.model = SequenceObjective(gpt, text)
        self._prepare(gpt.config.block_size)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in order, pass after pass, with captions worded anew in each pass."""
        variant, start = divmod(step * self.recipe.batch_size, self.scenes)
        index = start + torch.arange(rows.start, rows.stop)
        scenes = sample_scenes(len(index), self.seed, int(index[0]))
        return self._captions(captions(scenes, variant)) | {"tokens": self._tokens(index)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of held-out scenes, in nats per token, with and without their captions."""
        count, gpt = self.recipe.data.get("eval_scenes", 128), self.model.gpt
        device = gpt.rope.device
        tokens = self._extract(HELD_OUT_SEED, 0, count).to(device)
        told = {
            key: value.to(device)
            for key, value in self._captions(captions(sample_scenes(count, HELD_OUT_SEED))).items()
        }
        loss, _ = self.model(**told, tokens=tokens)
        untold = F.cross_entropy(gpt(tokens[:, :-1], gpt.null_condition(count)).flatten(0, 1), tokens.flatten())
        return {"held_out_loss": loss.item(), "held_out_loss_without_captions": untold.item()}
