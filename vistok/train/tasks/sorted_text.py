"""Train a draft model whose layer prefixes draft as well (sorted fine-tuning, as S2D does, arXiv 2407.01955).

Every exit learns its target's law through the shared norm and output layer; the loss is their mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from vistok.errors import VistokError
from vistok.train.options import read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.text import TextObjective, TextTask, held_out_figures


class SortedObjective(TextObjective):
    """Mean over the exits of the cross-entropy with the text, or with a teacher's law.

    Args:
        lm, teacher: see TextObjective.
        exits: layers of each exit.
    """

    def __init__(self, lm: LlamaForCausalLM, teacher: LlamaForCausalLM | None, exits: tuple[int, ...]):
        super().__init__(lm, teacher)
        self.exits = exits

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of texts [B, T], and acceptance of each exit where there is a teacher."""
        read, followed = input_ids[:, :-1], input_ids[:, 1:].flatten()
        law = None
        if self.teacher is not None:
            with torch.no_grad():
                law = self.teacher(input_ids=read, use_cache=False).logits.flatten(0, 1).float().softmax(-1)
        decoder = self.lm.model
        states = decoder(input_ids=read, use_cache=False, output_hidden_states=True)
        losses, metrics = [], {}
        for count in self.exits:
            whole = count == len(decoder.layers)  # whose states are normalised already
            state = states.last_hidden_state if whole else decoder.norm(states.hidden_states[count])
            logits = self.lm.lm_head(state).flatten(0, 1).float()
            losses.append(F.cross_entropy(logits, followed if law is None else law))
            if law is not None:
                metrics[f"acceptance_{count}"] = torch.minimum(logits.detach().softmax(-1), law).sum(-1).mean()
        return torch.stack(losses).mean(), metrics


@dataclass(frozen=True, kw_only=True)
class SortedInit:
    """Entries of ``init`` of the ``sorted-text`` task.

    Attributes:
        teacher: the target of the draft model.
        exits: layers of each exit; the last is the whole model.
    """

    teacher: str
    exits: tuple[int, ...]


class SortedTextTask(TextTask):
    """The ``sorted-text`` task: as ``text`` with a teacher, whose ``init`` names the exits too; see SortedInit."""

    def __init__(self, recipe: Recipe):
        init = read_options(SortedInit, recipe.init, "init")
        super().__init__(replace(recipe, init={"teacher": init.teacher}))
        self.recipe = recipe
        layers = len(self.model.lm.model.layers)
        if not init.exits or list(init.exits) != sorted(set(init.exits)) or init.exits[-1] != layers:
            raise VistokError(f"'init.exits' are numbers of layers that rise to {layers}, not {list(init.exits)}.")
        self.model = SortedObjective(self.model.lm, self.model.teacher, init.exits)
        self.model.lm.config.exits = list(init.exits)  # by which the exported model is known as one of exits

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the mean loss and acceptance of each exit on held-out modules."""
        return held_out_figures(
            self.model, ({"input_ids": ids} for ids in self._held_out().to(self.model.lm.device).split(16))
        )
