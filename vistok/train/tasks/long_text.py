"""Fine-tune a language model on long passages by LoRA: plainly, under a policy of its cache, or with tokens left out.

Core context aware attention (arXiv 2412.12465) is learnt by reading under its policy. LeMo (arXiv 2501.09767) lets a
part of the tokens pass layers by while it trains, and forms logits in segments; the model is evaluated whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok import context
from vistok.data.text import CORPUS
from vistok.errors import VistokError
from vistok.ops.segments import segmented_cross_entropy
from vistok.train.export import write_training_card
from vistok.train.involvement import Share, involve, saved_bytes
from vistok.train.lora import EVERY_MAP, Lora, with_lora
from vistok.train.options import Fraction, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks import text
from vistok.zoo.adapter import save_adapter

SEED_OF_CHANCE = 1  # of the tokens that stay where chance chooses them


@dataclass(frozen=True, kw_only=True)
class Involved:
    """Entries of ``model.involved``.

    Attributes:
        share: of a layer's tokens that stay, in blocks: those that receive most attention.
        layers: that leave the others out.
        block: tokens of a block.
        segment: tokens whose logits are formed at a time.
        window: tokens of which the share stays, each window by itself; see vistok.train.involvement.Share.
        chance: let chance choose the blocks, as a control.
    """

    share: Fraction
    layers: tuple[int, ...]
    block: int = 16
    segment: int = 512
    window: int | None = None
    chance: bool = False


class LongTextObjective(nn.Module):
    """Cross-entropy with the text.

    Args:
        lm: what is trained.
        involved: which tokens layers leave out in training; none if None.
    """

    def __init__(self, lm: LlamaForCausalLM, involved: Involved | None = None):
        super().__init__()
        self.lm, self.involved = lm, involved

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss in nats of passages [B, L]; in evaluation that of their last half, read whole."""
        first = 0 if self.training else input_ids.shape[1] // 2
        thinned = self.involved if self.training else None
        with nullcontext() if thinned is None else self._involve(thinned):
            hidden = self.lm.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, first:-1]
        targets = input_ids[:, first + 1 :]
        if thinned is not None:
            return segmented_cross_entropy(hidden, self.lm.lm_head, targets, thinned.segment), {}
        return F.cross_entropy(self.lm.lm_head(hidden).flatten(0, 1).float(), targets.flatten()), {}

    def _involve(self, involved: Involved):
        seed = SEED_OF_CHANCE if involved.chance else None
        return involve(self.lm, Share(involved.share, involved.block, seed, involved.window), involved.layers)


@dataclass(frozen=True, kw_only=True)
class LongTextData:
    """Entries of ``data`` of the ``long-text`` task.

    Attributes:
        length: tokens of a passage.
        seed: of passages.
        eval_samples: held-out passages that are evaluated on.
    """

    length: int
    seed: int
    eval_samples: int = 16


@dataclass(frozen=True, kw_only=True)
class LongTextModel:
    """Entries of ``model``.

    Attributes:
        lora: see Lora.
        rope_theta: base of the rotation, where it changes.
        policy: how the model reads, as commands name it, such as ``core:group=8:window=256``.
        involved: see Involved; no tokens are left out without it.
    """

    lora: Lora = field(default_factory=lambda: Lora(modules=EVERY_MAP))
    rope_theta: float | None = None
    policy: str | None = None
    involved: Involved | None = None


class LongTextTask(text.PassageTask):
    """The ``long-text`` task: see LongTextData, TuningInit and LongTextModel."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(LongTextData, recipe.data, "data")
        self.init = read_options(text.TuningInit, recipe.init, "init")
        self.shape = read_options(LongTextModel, recipe.model, "model")
        self.policy = context.Full() if self.shape.policy is None else context.POLICIES.build(self.shape.policy)
        if not self.policy.trains:
            raise VistokError(f"nothing can be learnt under {self.policy.name}: name another policy, such as core.")
        self.tokenizer, lm = text.load_lm(self.init.target)
        lm = text.lengthened(lm, self.data.length, self.shape.rope_theta)
        torch.manual_seed(recipe.seed)
        self.adapted = with_lora(lm, self.shape.lora)
        self.model = LongTextObjective(lm, self.shape.involved)
        self.tokens = text.encoded(self.tokenizer, "train")
        if self.shape.policy is not None:
            context.apply(lm, self.policy)

    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Passages of the corpus."""
        generator = torch.Generator().manual_seed(seed)
        length = min(self.data.length, len(tokens) - 1)
        return {"input_ids": text.draw_passages(tokens, length, count, generator)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss on held-out modules, under a policy also with all keys; where tokens are left out, bytes of a step."""
        figures = super().evaluate()
        if self.shape.policy is not None:
            with _without(self.model.lm):
                figures["held_out_loss_all_keys"] = super().evaluate()["held_out_loss"]
        if self.shape.involved is not None:
            figures["saved_bytes"] = self._saved_bytes(LongTextObjective(self.model.lm, self.shape.involved))
            figures["saved_bytes_of_all"] = self._saved_bytes(LongTextObjective(self.model.lm))
        return figures

    def _saved_bytes(self, objective: LongTextObjective) -> int:
        """What autograd stores for one passage."""
        batch = {name: value.to(self.model.lm.device) for name, value in self.batch(0, slice(0, 1)).items()}
        training = self.model.training
        objective.train()  # a new one: the trainer's own may compute in another precision
        with torch.enable_grad(), saved_bytes() as total:
            loss, _ = objective(**batch)  # held, or nothing would stay stored
        self.model.train(training)
        return total[0] if loss is not None else 0

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the factors, the configuration and a card."""
        with _without(self.model.lm):
            save_adapter(directory, self.adapted, self.init.target)
        corpus = f"{CORPUS}, seed {self.data.seed}"
        parts, task = {"base": self.init.target}, "text-generation"
        write_training_card(directory, self.recipe, self.model.lm, task, "llama", metrics, steps, parts, data=corpus)


@contextmanager
def _without(lm: nn.Module) -> Iterator[None]:
    """The model without its policy, for a while."""
    at_work = context.active(lm)
    with nullcontext() if at_work is None else at_work.paused():
        yield
