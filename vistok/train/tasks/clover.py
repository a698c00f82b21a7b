"""Train Clover's sequential heads for a frozen language model (arXiv 2405.00263).

Every head learns the target's law at the place that it stands for, on text of the corpus, its states formed from those
of the heads before as in drafting. Against the paper, but as in Clover-2, the law is learnt and not the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok.data.text import CORPUS
from vistok.models.heads.clover import Clover
from vistok.train.export import write_training_card
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.tasks import text


class CloverObjective(nn.Module):
    """Cross-entropy of each head with the target's law, falling in weight.

    Args:
        lm: the target, frozen.
        heads: that are trained; their embedding stays as it is.
        depths: heads in sequence.
        decay: weight of a head against the one before.
    """

    def __init__(self, lm: LlamaForCausalLM, heads: Clover, depths: int, decay: float):
        super().__init__()
        self.lm, self.heads, self.depths, self.decay = lm.requires_grad_(False), heads, depths, decay

    def train(self, mode: bool = True) -> CloverObjective:
        """The target stays as it decodes."""
        super().train(mode)
        self.lm.eval()
        return self

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and acceptance of each head; ``input_ids`` [B, T]."""
        with torch.no_grad():
            hidden = self.lm.model(input_ids, use_cache=False).last_hidden_state
            law = self.lm.lm_head(hidden).float().softmax(-1)
        length = input_ids.shape[1] - self.depths
        states = self.heads.unrolled(hidden[:, :length], input_ids[:, 1:], self.depths)
        loss, metrics = hidden.new_zeros(()), {}
        for depth, state in enumerate(states, 1):
            logits = self.lm.lm_head(state).float()
            wanted = law[:, depth : depth + length]  # behind token j + depth, which the head has read
            loss = loss + self.decay**depth * F.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1))
            overlap = torch.minimum(logits.detach().softmax(-1), wanted).sum(-1).mean()
            metrics[f"acceptance_{depth}"] = overlap
        return loss / self.depths, metrics


@dataclass(frozen=True, kw_only=True)
class CloverData:
    """Entries of ``data`` of the ``clover`` task.

    Attributes:
        length: tokens of a sample.
        depths: heads in sequence that are trained.
        seed: of the samples.
        decay: weight of a head against the one before.
        eval_samples: held-out samples that are evaluated on.
    """

    length: int
    depths: int
    seed: int
    decay: float = 0.8
    eval_samples: int = 64


@dataclass(frozen=True, kw_only=True)
class CloverInit:
    """Entries of ``init``.

    Attributes:
        target: the language model that the heads are for.
    """

    target: str


class CloverTask(text.PassageTask):
    """The ``clover`` task: see CloverData and CloverInit; ``model`` shapes the heads as DrafterConfig does."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(CloverData, recipe.data, "data")
        self.init = read_options(CloverInit, recipe.init, "init")
        self.tokenizer, lm = text.load_lm(self.init.target)
        torch.manual_seed(recipe.seed)
        given = {"vocab_size": lm.config.vocab_size, "hidden_size": lm.config.hidden_size}
        heads = start_network(Clover, None, recipe.model, given)
        heads.embed_tokens.weight.data.copy_(lm.get_input_embeddings().weight)
        heads.embed_tokens.requires_grad_(False)
        self.model = CloverObjective(lm, heads, self.data.depths, self.data.decay)
        self.tokens = text.encoded(self.tokenizer, "train")

    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Returns passages of the corpus."""
        generator = torch.Generator().manual_seed(seed)
        return {"input_ids": text.draw_passages(tokens, self.data.length, count, generator)}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the heads, with a card."""
        heads = self.model.heads
        heads.save_pretrained(directory, torch.float16)
        corpus = f"{CORPUS}, seed {self.data.seed}"
        parts = {"target": self.init.target}
        write_training_card(
            directory, self.recipe, heads, "draft", "clover", metrics, steps, parts, heads.arxiv, corpus
        )
