"""Train a coprocessor that adds latent embeddings to a frozen language model's cache (arXiv 2412.17747).

Every passage trains several points in one pass; the loss is that of the tokens behind each point, read behind its
latents. As published, but that the passages of a process share the points of a step, and for ``model.repeats``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok.context.augmentation import Coprocessor, augmentation_loss, plain_loss
from vistok.data.text import CORPUS, package_documents
from vistok.errors import VistokError
from vistok.files import write_json
from vistok.train.export import write_training_card
from vistok.train.options import read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks import text
from vistok.zoo.checkpoint import write_state_dict


class AugmentationObjective(nn.Module):
    """Cross-entropy of the tokens behind points of a text.

    Args:
        lm: the frozen causal LM.
        coprocessor: what is trained.
        ahead: tokens behind each point.
    """

    def __init__(self, lm: LlamaForCausalLM, coprocessor: Coprocessor, ahead: int):
        super().__init__()
        self.lm, self.coprocessor, self.ahead = lm.requires_grad_(False), coprocessor, ahead

    def train(self, mode: bool = True) -> AugmentationObjective:
        """The model stays as it decodes."""
        super().train(mode)
        self.lm.eval()
        return self

    def forward(self, input_ids: Tensor, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss in nats behind the latents; in evaluation also how far it lies below that without them.

        Args:
            input_ids: int64 [B, L].
            points: of all texts, as rows of one tensor [B, P]; the first row counts.
        """
        loss = augmentation_loss(self.lm, self.coprocessor, input_ids, points[0], self.ahead)
        if self.training:
            return loss, {}
        plain = plain_loss(self.lm, input_ids, points[0], self.ahead)
        return loss, {"gain": plain - loss}


@dataclass(frozen=True, kw_only=True)
class AugmentationData:
    """Entries of ``data`` of the ``augmentation`` task.

    Attributes:
        length: tokens of a passage.
        points: how many of its places are trained.
        ahead: tokens behind a place whose loss is taken.
        seed: of passages and places.
        eval_samples: held-out passages that are evaluated on.
        packages: installed Python packages whose sources are learnt from beside the corpus. What the model was trained
            on it half knows by heart, so that reading it back gains little there.
    """

    length: int
    points: int
    seed: int
    ahead: int = 16
    eval_samples: int = 64
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AugmentationInit:
    """Entries of ``init``.

    Attributes:
        target: the language model whose cache is read.
    """

    target: str


@dataclass(frozen=True, kw_only=True)
class AugmentationModel:
    """Entries of ``model``.

    Attributes:
        latents: embeddings that are added at a point.
        repeats: let them stand in the place of the text's last words, and begin as these; see Coprocessor.
    """

    latents: int = 16
    repeats: bool = False


class AugmentationTask(text.PassageTask):
    """The ``augmentation`` task: see AugmentationData, AugmentationInit and AugmentationModel."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(AugmentationData, recipe.data, "data")
        self.init = read_options(AugmentationInit, recipe.init, "init")
        shape = read_options(AugmentationModel, recipe.model, "model")
        self.first = shape.latents - 1 if shape.repeats else 0  # the first place that has as many words as are repeated
        if self.data.length - self.data.ahead - self.first <= self.data.points:
            raise VistokError(
                f"{self.data.points} points from token {self.first} on, with {self.data.ahead} tokens behind each, do "
                f"not fit into {self.data.length}: set 'data.length' higher."
            )
        self.tokenizer, lm = text.load_lm(self.init.target)
        torch.manual_seed(recipe.seed)
        self.model = AugmentationObjective(lm, Coprocessor(lm, shape.latents, shape.repeats), self.data.ahead)
        self.tokens = torch.cat([text.encoded(self.tokenizer, "train"), *self._packages("train")])

    def _packages(self, split: str) -> list[Tensor]:
        """Returns the tokens of each package's split."""
        return [text.joined(self.tokenizer, package_documents(name, split)) for name in self.data.packages]

    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Returns passages of the corpus, and the places that all of them share."""
        data, generator = self.data, torch.Generator().manual_seed(seed)
        ids = text.draw_passages(tokens, data.length, count, generator)
        places = torch.randperm(data.length - data.ahead - self.first, generator=generator)
        points = places[: data.points].sort().values + self.first
        return {"input_ids": ids, "points": points.expand(count, -1)}

    def evaluate(self) -> dict[str, float]:
        """Returns loss and gain on held-out modules, and on held-out sources of each package."""
        figures = super().evaluate()
        for name, tokens in zip(self.data.packages, self._packages("held-out"), strict=True):
            figures |= {f"{key}_{name}": value for key, value in self.held_out(tokens).items()}
        return figures

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the coprocessor in half precision, the shape of its latents, and a card."""
        coprocessor = self.model.coprocessor
        state = {key: value.half() for key, value in coprocessor.state_dict().items()}
        write_state_dict(directory / "model.safetensors", state)
        shape = {"latents": len(coprocessor.soft), "repeats": coprocessor.change is not None}
        write_json(directory / "config.json", shape)
        corpus = ", ".join([CORPUS, *(f"sources of {name}" for name in self.data.packages), f"seed {self.data.seed}"])
        parts = {"target": self.init.target}
        write_training_card(
            directory, self.recipe, coprocessor, "context", "augmentation", metrics, steps, parts, "2412.17747", corpus
        )
