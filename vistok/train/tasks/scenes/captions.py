"""Pre-train the caption encoder of the embedded text-to-image model: from features to what the caption states.

The published models use a T5 that was pre-trained on text; this is the embedded world's counterpart. LlamaGen's image
tokens see the caption as one mean over its tokens (see ``vistok.models.llamagen``), so the statement is read from the
mean feature.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, sample_scenes, statements, vocabulary
from vistok.data.scenes.language import RELATIONS, Statement
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.models.text_encoder import TextEncoder
from vistok.train.options import Fraction, NoEntries, read_options
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = list(RELATIONS)


def facts(statement: Statement) -> list[int]:
    """Returns what a statement says, as class numbers.

    Count, colour, size and place of each shape; the background; shape and colour of what is at each place; shape of
    what has each colour (the last in the order of SHAPES if there are two). What stands after the background follows
    from what stands before it, but not linearly. Zero means "not told" everywhere. Groups of a scene always differ in
    shape, so a shape names a group.
    """
    told, there, painted = [], dict.fromkeys(PLACES, (0, 0)), dict.fromkeys(range(1, 1 + len(COLOURS)), 0)
    for shape in SHAPES:
        found = [(i, g) for i, g in enumerate(statement.groups) if g.shape == shape]
        if not found:
            told += [0, 0, 0, 0]
            continue
        i, group = found[0]
        place = None
        if statement.where is not None:
            place = statement.where if i == 0 else OPPOSITE[statement.where]
        colour = 1 + COLOURS.index(group.colour) if statement.with_colour else 0
        told += [
            group.count,
            colour,
            1 + SIZES.index(group.size) if statement.with_size else 0,
            0 if place is None else 1 + PLACES.index(place),
        ]
        if place is not None:
            there[place] = (1 + SHAPES.index(shape), colour)
        if colour:
            painted[colour] = 1 + SHAPES.index(shape)
    told.append(0 if statement.background is None else 1 + BACKGROUNDS.index(statement.background))
    return [*told, *(number for what in there.values() for number in what), *painted.values()]


FACT_SIZES = [5, 1 + len(COLOURS), 1 + len(SIZES), 1 + len(PLACES)] * len(SHAPES) + [1 + len(BACKGROUNDS)]
FACT_SIZES += [1 + len(SHAPES), 1 + len(COLOURS)] * len(PLACES) + [1 + len(SHAPES)] * len(COLOURS)


class CaptionObjective(nn.Module):
    """Cross-entropy of all facts, read linearly from the mean feature of a caption."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.encoder = encoder
        self.read = nn.Linear(encoder.dim, sum(FACT_SIZES))

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask / attention_mask.sum(1, keepdim=True)
        return self.read((features * weight[..., None]).sum(1)).split(FACT_SIZES, -1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, facts: Tensor):
        logits = self.logits(input_ids, attention_mask)
        loss = sum(F.cross_entropy(x, y) for x, y in zip(logits, facts.unbind(1), strict=True))
        return loss, {}


@dataclass(frozen=True, kw_only=True)
class CaptionData:
    """Entries of ``data`` of the ``captions`` task.

    Attributes:
        seed: the world whose captions are read.
    """

    seed: int


@dataclass(frozen=True, kw_only=True)
class CaptionModel:
    """Entries of ``model``.

    Attributes:
        d_model, num_layers, num_heads, d_ff: sizes of the encoder, under the names of T5Config.
        max_length: caption length in tokens, the end token included.
        dropout_rate: in training.
    """

    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    max_length: int
    dropout_rate: Fraction = 0.1


class CaptionTask(Task):
    """The ``captions`` task: see CaptionData and CaptionModel."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.seed = check_training_seed(read_options(CaptionData, recipe.data, "data").seed)
        read_options(NoEntries, recipe.init, "init")
        model = read_options(CaptionModel, recipe.model, "model")
        torch.manual_seed(recipe.seed)
        self.encoder = TextEncoder.build(vocabulary(), **asdict(model))
        self.model = CaptionObjective(self.encoder)

    def _batch(self, count: int, seed: int, start: int) -> dict[str, Tensor]:
        said = statements(sample_scenes(count, seed, start))
        tokens = self.encoder.tokenizer(
            [s.text for s in said], max_length=self.encoder.max_length, padding="max_length", return_tensors="pt"
        )
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "facts": torch.tensor([facts(s) for s in said]),
        }

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns captions of freshly drawn scenes."""
        start = step * self.recipe.batch_size + rows.start
        return self._batch(rows.stop - rows.start, self.seed, start)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the share of held-out captions of which every fact is read correctly."""
        batch = self._batch(512, HELD_OUT, 0)
        told = batch.pop("facts")
        device = self.model.read.weight.device
        logits = self.model.logits(**{k: v.to(device) for k, v in batch.items()})
        found = torch.stack([x.argmax(-1) for x in logits], 1).cpu()
        return {
            "facts_right": (found == told).float().mean().item(),
            "captions_right": (found == told).all(1).float().mean().item(),
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the encoder with its tokenizer."""
        self.encoder.save_pretrained(directory)
