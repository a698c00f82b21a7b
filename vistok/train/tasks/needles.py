"""Teach a small language model to read back: needles strewn into ever longer passages of the corpus.

A needle stands several times in a passage, and the loss is that of its value wherever it stands again: induction forms
in a few hundred steps on short dense passages, and longer ones spread it. The base of the rotation is that of the
longest passages from the start. Logits are formed where a loss is alone, never of a whole passage.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok import context
from vistok.data.needles import NeedleText
from vistok.data.text import CORPUS
from vistok.errors import VistokError
from vistok.eval.needle import find_needles
from vistok.ops.noise import derive_seed
from vistok.train.export import write_training_card
from vistok.train.lora import Lora, with_lora
from vistok.train.options import Fraction, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks import text
from vistok.train.trainer import Task
from vistok.zoo.adapter import save_adapter

NEEDLES = 4  # of a passage that is evaluated on
ROOM = 256  # positions behind the longest passage, for what is asked and written there


class NeedleObjective(nn.Module):
    """Cross-entropy of the needles' values, and of some of the text.

    Args:
        lm: what is trained.
    """

    def __init__(self, lm: LlamaForCausalLM):
        super().__init__()
        self.lm = lm

    def forward(
        self, input_ids: Tensor, places: Tensor, others: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss in nats, and of it the needles' part, the share of values that are right, and the text's part.

        Args:
            input_ids: int64 [B, L].
            places: of the tokens before values, int64 [B, P].
            others: of tokens whose next one is text, int64 [B, O].
            weights: of their loss, [B], the same for all.
        """
        hidden = self.lm.model(input_ids=input_ids, use_cache=False).last_hidden_state
        needles, right = self._loss(hidden, input_ids, places)
        plain, _ = self._loss(hidden, input_ids, others)
        metrics = {"needle_loss": needles.detach(), "found": right, "text_loss": plain.detach()}
        return needles + weights[0] * plain, metrics

    def _loss(self, hidden: Tensor, ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the tokens behind places, and the share of them that come first."""
        rows = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.lm.lm_head(rows).flatten(0, 1).float()
        targets = ids.gather(1, places + 1).flatten()
        return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean().detach()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Entries of a member of ``data.stages``.

    Attributes:
        length: tokens of a passage.
        needles: different ones in it.
        steps: how long the stage is.
        times: how often a needle stands in a passage; the fewer, the farther apart.
        text: weight of the text's loss, which holds induction up while it forms.
    """

    length: int
    needles: int
    steps: int
    times: int = 3
    text: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NeedleData:
    """Entries of ``data`` of the ``needles`` task.

    Attributes:
        stages: in their order; ``batch_size`` counts passages of the first one, and of longer ones there are as many
            fewer, at least one.
        seed: of passages.
        others: places whose next token is learnt as text, as a share of the passage.
        eval_samples: held-out passages of each length that are evaluated on, with a few needles.
    """

    stages: tuple[Stage, ...]
    seed: int
    others: Fraction = 0.5
    eval_samples: int = 16


@dataclass(frozen=True, kw_only=True)
class NeedleModel:
    """Entries of ``model``.

    Attributes:
        rope_theta: base of the rotation.
        lora: see Lora; all weights are trained without it.
    """

    rope_theta: float
    lora: Lora | None = None


class NeedleTask(Task):
    """The ``needles`` task: see NeedleData, TuningInit and NeedleModel."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(NeedleData, recipe.data, "data")
        self.init = read_options(text.TuningInit, recipe.init, "init")
        shape = read_options(NeedleModel, recipe.model, "model")
        if (fewest := min((stage.times for stage in self.data.stages), default=0)) < 2:
            raise VistokError(f"'times' of 'data.stages' is {fewest}: a needle must stand twice to be found again.")
        if (steps := sum(stage.steps for stage in self.data.stages)) != recipe.steps:
            raise VistokError(f"'data.stages' has {steps} steps and 'steps' is {recipe.steps}: make them agree.")
        self._ends = list(accumulate(stage.steps for stage in self.data.stages))
        self.lengths = sorted({stage.length for stage in self.data.stages})
        self.tokenizer, lm = text.load_lm(self.init.target)
        lm = text.lengthened(lm, self.lengths[-1] + ROOM, shape.rope_theta)
        torch.manual_seed(recipe.seed)
        self.adapted = None if shape.lora is None else with_lora(lm, shape.lora)
        self.model = NeedleObjective(lm)
        self.passages = NeedleText(self.tokenizer, text.documents("train"))

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Passages of the length that is this step's turn."""
        data = self.data
        stage = next(stage for stage, end in zip(data.stages, self._ends, strict=True) if step < end)
        count = max(1, (rows.stop - rows.start) * data.stages[0].length // stage.length)
        generator = torch.Generator().manual_seed(derive_seed(data.seed, step * self.recipe.batch_size + rows.start))
        lessons = [self.passages.lesson(stage.length, stage.needles, stage.times, generator) for _ in range(count)]
        others = torch.randint(stage.length - 1, (count, round(data.others * stage.length)), generator=generator)
        ids, places = (torch.stack(parts) for parts in zip(*lessons, strict=True))
        return {"input_ids": ids, "places": places, "others": others, "weights": torch.full((count,), stage.text)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Share of needles found in held-out modules by length, and loss in nats of the last half of plain passages."""
        held_out = NeedleText(self.tokenizer, text.documents("held-out"))
        lm, count = self.model.lm, self.data.eval_samples
        figures = {}
        for length in self.lengths:
            point = find_needles(lm, held_out, context.Full(), length, NEEDLES, count)
            figures[f"found_{length}"] = point.found.value
        generator = torch.Generator().manual_seed(1)
        for length in self.lengths:
            size = min(length, len(held_out.tokens) - 1)
            ids = text.draw_passages(held_out.tokens, size, count, generator).to(lm.device)
            losses = [self._late_loss(row) for row in ids.split(1)]
            figures[f"held_out_loss_{length}"] = float(torch.stack(losses).mean())
        return figures

    def _late_loss(self, ids: Tensor) -> Tensor:
        """Mean loss in nats of the last half of a passage [1, L]."""
        late = ids.shape[1] // 2
        logits = self.model.lm(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=late).logits[0].float()
        return F.cross_entropy(logits, ids[0, -late:])

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the model as transformers does, in half precision, with its tokenizer; or the factors alone."""
        lm = self.model.lm
        if self.adapted is None:
            text.save_lm(directory, lm, self.tokenizer)
        else:
            save_adapter(directory, self.adapted, self.init.target)
        corpus = f"{CORPUS}, seed {self.data.seed}"
        parts, task = {"init": self.init.target}, "text-generation"
        write_training_card(directory, self.recipe, lm, task, "llama", metrics, steps, parts, data=corpus)
