"""Train LoCoCo's convolutions (arXiv 2406.05317) beside a frozen language model.

Passages are read in chunks over the compressed cache of the chunks before, which is detached, so the loss of a chunk
teaches the convolutions that compressed its cache once. As published, but that the model itself is not tuned along.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok import context
from vistok.context.interface import Policy
from vistok.context.lococo import chunk_losses, saver_state
from vistok.data.needles import NeedleText
from vistok.data.text import CORPUS
from vistok.errors import VistokError
from vistok.files import write_json
from vistok.train.export import write_training_card
from vistok.train.options import read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks import text
from vistok.zoo.checkpoint import write_state_dict


class LoCoCoObjective(nn.Module):
    """Cross-entropy of the chunks behind the first.

    Args:
        lm: the frozen causal LM, which stays under the policy.
        policy: whose ``savers`` are trained.
        chunk: tokens that are read together.
    """

    def __init__(self, lm: LlamaForCausalLM, policy: context.LoCoCo, chunk: int):
        super().__init__()
        self.lm, self.chunk = lm.requires_grad_(False), chunk
        policy.prepare(lm)
        self.savers = policy.savers
        self.under(policy)

    def under(self, policy: Policy) -> None:
        """Put another policy on the model."""
        if (before := context.active(self.lm)) is not None:
            before.remove()
        context.apply(self.lm, policy)

    def forward(self, input_ids: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss in nats of texts [B, T] behind their first chunk; weights [B, T] of tokens count in training."""
        losses = chunk_losses(self.lm, input_ids, self.chunk, weights if self.training else None)
        return torch.stack(list(losses)[1:]).mean(), {}


@dataclass(frozen=True, kw_only=True)
class LoCoCoData:
    """Entries of ``data`` of the ``lococo`` task.

    Attributes:
        length: tokens of a passage.
        chunk: tokens that are read together; more than a chunk must be left behind the first.
        seed: of passages.
        eval_samples: held-out passages that are evaluated on.
        needles: different ones in a passage; plain text if 0.
        times: how often each of them stands there.
        weight: of the loss of a needle's value that stood before, where another token's is 1.
    """

    length: int
    chunk: int
    seed: int
    eval_samples: int = 64
    needles: int = 0
    times: int = 3
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LoCoCoInit:
    """Entries of ``init``.

    Attributes:
        target: the language model whose cache is compressed.
    """

    target: str


class LoCoCoTask(text.PassageTask):
    """The ``lococo`` task: see LoCoCoData and LoCoCoInit; ``model`` holds entries of vistok.context.Mixing."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(LoCoCoData, recipe.data, "data")
        self.init = read_options(LoCoCoInit, recipe.init, "init")
        self.mixing = read_options(context.Mixing, recipe.model, "model")
        if self.data.length <= 2 * self.data.chunk:
            raise VistokError(f"'data.length' is {self.data.length}: take more than two chunks of {self.data.chunk}.")
        self.tokenizer, lm = text.load_lm(self.init.target)
        torch.manual_seed(recipe.seed)
        self.policy = context.LoCoCo(mixing=self.mixing, chunk=self.data.chunk)
        self.model = LoCoCoObjective(lm, self.policy, self.data.chunk)
        self.tokens = text.encoded(self.tokenizer, "train")

    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Passages of the corpus, with needles where they are wanted."""
        generator = torch.Generator().manual_seed(seed)
        if self.data.needles:
            strewn, wanted = NeedleText(self.tokenizer, tokens), (self.data.length, self.data.needles, self.data.times)
            lessons = [strewn.lesson(*wanted, generator) for _ in range(count)]
            ids, places = (torch.stack(parts) for parts in zip(*lessons, strict=True))
            return {"input_ids": ids, "weights": torch.ones(ids.shape).scatter(1, places + 1, self.data.weight)}
        return {"input_ids": text.draw_passages(tokens, self.data.length, count, generator)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss on held-out modules, beside dropping all but heavy hitters and beside the whole cache."""
        rivals: dict[str, Policy] = {
            "_heavy_hitters": context.HeavyHitters(self.mixing.memory, self.mixing.local, self.data.chunk),
            "_whole_cache": context.Full(),
            "": self.policy,
        }
        figures = {}
        for name, policy in rivals.items():
            self.model.under(policy)
            figures[f"held_out_loss{name}"] = super().evaluate()["held_out_loss"]
        return figures

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the convolutions under their published names, their shape, and a card."""
        state = {name: tensor.half() for name, tensor in saver_state(self.model.savers).items()}
        write_state_dict(directory / "model.safetensors", state)
        write_json(directory / "config.json", asdict(self.mixing))
        corpus = f"{CORPUS}, seed {self.data.seed}"
        write_training_card(
            directory,
            self.recipe,
            self.model.savers,
            "context",
            "lococo",
            metrics,
            steps,
            {"target": self.init.target},
            "2406.05317",
            corpus,
        )
