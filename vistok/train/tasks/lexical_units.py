"""Teach a language model to say several tokens at once where it is sure of them (LUD, arXiv 2405.15208).

A lexical unit is a run of tokens that the model, as it was, gives at least the probability ``threshold`` each. The
whole model is then trained to say the next token as ever and, in placeholders behind a token, what follows the next one
for as long as the unit goes on. The placeholder is a new token of the vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok.data.text import CORPUS
from vistok.models.heads.extra_rows import Placeholders
from vistok.samplers.drafters.lexical_units import PLACEHOLDER
from vistok.train.export import write_training_card
from vistok.train.options import Fraction, check_entries, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks import text
from vistok.train.tasks.extra_rows import rows_forward


class LexicalUnitsObjective(nn.Module):
    """Cross-entropy of the next token, and of the rest of its unit in placeholders.

    Args:
        lm: the model that is trained.
        teacher: the model as it was, which says where units end.
        token: the placeholder.
        ahead: placeholders behind a token.
        threshold: least probability of a token within a unit.
    """

    def __init__(self, lm: LlamaForCausalLM, teacher: LlamaForCausalLM, token: int, ahead: int, threshold: float):
        super().__init__()
        self.lm, self.teacher, self.threshold = lm, teacher.requires_grad_(False), threshold
        self.rows = Placeholders(lm.get_input_embeddings(), token, ahead)

    def train(self, mode: bool = True) -> LexicalUnitsObjective:
        """The teacher stays as it decodes."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, input_ids: Tensor, cuts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and the mean length of units and how long the model is sure of them.

        Args:
            input_ids: int64 [B, T].
            cuts: places whose placeholders are trained, at most T - 2 - ahead, int64 [B, C].
        """
        with torch.no_grad():
            law = self.teacher(input_ids, use_cache=False).logits.float().softmax(-1)
            chance = law[:, :-1].gather(2, input_ids[:, 1:, None])[..., 0]  # of token t + 1
        logits, filled = rows_forward(self.lm, self.rows, input_ids, cuts)
        places = cuts[..., None] + 2 + torch.arange(self.rows.ahead, device=cuts.device)
        batch = torch.arange(len(cuts), device=cuts.device)[:, None, None]
        inside = (chance[batch, places - 1] >= self.threshold).long().cumprod(-1)
        wanted = input_ids[batch, places]
        lost = F.cross_entropy(filled.flatten(0, 2).float(), wanted.flatten(), reduction="none").view_as(wanted)
        units = (lost * inside).sum() / inside.sum().clamp(min=1)
        following = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())
        best, token = filled.detach().float().softmax(-1).max(-1)
        sure = (best >= self.threshold).long().cumprod(-1)
        metrics = {
            "next_loss": following.detach(),
            "unit_tokens": 1 + inside.sum(-1).float().mean(),
            "sure_tokens": 1 + sure.sum(-1).float().mean(),
            "sure_and_right": ((token == wanted) * sure).sum() / sure.sum().clamp(min=1),
        }
        return following + units, metrics


@dataclass(frozen=True, kw_only=True)
class LexicalUnitsData:
    """Entries of ``data`` of the ``lexical-units`` task.

    Attributes:
        length: tokens of a sample.
        cuts: places of a sample whose placeholders are trained.
        ahead: placeholders behind a token.
        threshold: least probability of a token within a unit.
        seed: of samples and places.
        eval_samples: held-out samples that are evaluated on.
    """

    length: int
    cuts: int
    seed: int
    ahead: int = 4
    threshold: Fraction = 0.9
    eval_samples: int = 64


@dataclass(frozen=True, kw_only=True)
class LexicalUnitsInit:
    """Entries of ``init``.

    Attributes:
        lm: the language model that is taught.
    """

    lm: str


class LexicalUnitsTask(text.PassageTask):
    """The ``lexical-units`` task: see LexicalUnitsData and LexicalUnitsInit; ``model`` has no entries."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(LexicalUnitsData, recipe.data, "data")
        self.init = read_options(LexicalUnitsInit, recipe.init, "init")
        check_entries(recipe.model, (), "model")
        self.tokenizer, lm = text.load_lm(self.init.lm)
        torch.manual_seed(recipe.seed)
        teacher = copy.deepcopy(lm)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
        lm.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        token = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        self.model = LexicalUnitsObjective(lm, teacher, token, self.data.ahead, self.data.threshold)
        self.tokens = text.encoded(self.tokenizer, "train")

    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Returns passages of the corpus, and places within them."""
        data, generator = self.data, torch.Generator().manual_seed(seed)
        ids = text.draw_passages(tokens, data.length, count, generator)
        cuts = torch.randint(data.length - 2 - data.ahead, (count, data.cuts), generator=generator)
        return {"input_ids": ids, "cuts": cuts}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the model as transformers does, in half precision, with its tokenizer."""
        lm = self.model.lm
        saved = LlamaForCausalLM(lm.config).to(torch.float16)
        saved.load_state_dict(lm.state_dict())
        saved.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        corpus = f"{CORPUS}, seed {self.data.seed}"
        write_training_card(
            directory, self.recipe, lm, "text-generation", "llama", metrics, steps, paper="2405.15208", data=corpus
        )
