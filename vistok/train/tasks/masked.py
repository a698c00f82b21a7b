"""Train a generator of masked codes on the codes of pictures, from classes or captions: MaskGIT (arXiv 2202.04200), and
ENAT (arXiv 2411.06959, section 4), whose network also learns to go on from features of an earlier step.

Of classes only those scenes are used that have one object; of a folder, the folders below it are the classes. Captions
are read by a frozen encoder, and their pictures are not mirrored.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.enat import ENAT
from vistok.models.interface import Condition
from vistok.models.masked import MaskedTransformer
from vistok.models.maskgit import MaskGIT
from vistok.tokenizers.load import load_tokenizer
from vistok.train.options import Fraction, read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw, Extracted, PictureData, Source, open_source
from vistok.train.tasks.llamagen import frozen_caption_encoder
from vistok.train.tasks.pictures import PictureTask, check_size

IGNORED = -1  # the label of a code that is not hidden
SMOOTHING = 0.1


def hide(scores: Tensor, ratio: float) -> Tensor:
    """Returns a training mask, bool [B, L], True where hidden.

    Args:
        scores: uniforms [B, L].
        ratio: share of hidden codes; at least one is, and one is not.
    """
    length = scores.shape[1]
    return scores.argsort(1) < min(max(round(length * ratio), 1), length - 1)


def masked_loss(logits: Tensor, labels: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """Returns the cross-entropy of hidden codes with smoothed labels.

    Args:
        logits: [..., V].
        labels: codes [...], ``IGNORED`` where visible.
        smoothing: probability that labels spread over all codes.
    """
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, label_smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class MaskedData(PictureData):
    """Entries of ``data``, beside those of PictureData.

    Attributes:
        size: side of the pictures in pixels.
        ratio: the two parameters of the beta law of the share of hidden codes, one draw a batch.
        class_dropout: share of samples without a class, beside those that the network drops; captions are dropped by
            the network alone.
        smoothing: of the labels. What it spreads is drawn as well, wherever the temperature does not fall to none.
    """

    size: int
    ratio: tuple[float, float] = (12.0, 3.0)
    class_dropout: Fraction = 0.15
    smoothing: Fraction = SMOOTHING


@dataclass(frozen=True, kw_only=True)
class ENATData(MaskedData):
    """Entries of ``data`` of the ``enat`` task.

    Attributes:
        reuse: share of batches in which an earlier step is simulated, by the averaged weights.
        average: decay of these weights, each step.
    """

    reuse: Fraction = 0.5
    average: Fraction = 0.9999


@dataclass(frozen=True, kw_only=True)
class MaskedInit:
    """Entries of ``init``.

    Attributes:
        tokenizer: of a grid of codes.
        model: weights to go on from; new ones of the shape ``model`` if absent.
        text_encoder: a caption encoder, or a generator that has one; without it the generator is one of classes.
    """

    tokenizer: str
    model: str | None = None
    text_encoder: str | None = None


class MaskedObjective(nn.Module):
    """The cross-entropy of hidden codes.

    Args:
        network: the generator.
        smoothing: of the labels.
        term: another loss of the n hidden codes, if any: of their features [n, E], logits [n, V], the codes [n] that
            are predicted, and what else a batch tells of each code.
    """

    def __init__(self, network: MaskedTransformer, smoothing: float = SMOOTHING, term: nn.Module | None = None):
        super().__init__()
        self.network, self.smoothing, self.term = network, smoothing, term

    def forward(self, codes: Tensor, values: Tensor, mask: Tensor, earlier: Tensor | None = None, **told: Tensor):
        """Returns the loss of a batch and its parts.

        Args:
            codes: [B, L].
            values: of the condition, see MaskedTransformer.
            mask: True where hidden, [B, L].
            earlier: the mask of the step before, which is simulated, or nothing.
            told: what ``term`` is told of each code, [B, L, ...].
        """
        network, state = self.network, self.state(codes, values, earlier)
        features, _ = network.features(codes.masked_fill(mask, network.mask_id), values, state)
        features, hidden = features[mask], codes[mask]
        logits = network.logits(features).float()
        loss = masked_loss(logits, hidden, self.smoothing)
        if self.term is None:
            return loss, {"codes": loss.detach()}
        term = self.term(features, logits, hidden, **{name: x[mask] for name, x in told.items()})
        return loss + term, {"codes": loss.detach(), "term": term.detach()}

    def state(self, codes: Tensor, values: Tensor, earlier: Tensor | None) -> Any | None:
        """Returns what the step before leaves; nothing."""
        return None


class ENATObjective(MaskedObjective):
    """The cross-entropy of hidden codes, given features of an earlier step by averaged weights.

    Args:
        network, smoothing, term: see MaskedObjective.
        decay: of the average.
    """

    def __init__(self, network: ENAT, smoothing: float, term: nn.Module | None, decay: float):
        super().__init__(network, smoothing, term)
        self.decay = decay
        self.averaged = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averaged weights towards those in training."""
        for mean, now in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now.to(mean), 1 - self.decay)

    @torch.no_grad()
    def state(self, codes: Tensor, values: Tensor, earlier: Tensor | None) -> Any | None:
        """Returns the averaged network's state after a step without one, or nothing."""
        if earlier is None or bool(earlier.all()):
            return None
        self.averaged.eval()
        return self.averaged.features(codes.masked_fill(earlier, self.averaged.mask_id), values, None)[1]


class MaskGITTask(PictureTask):
    """The ``maskgit`` task: see MaskedData and MaskedInit."""

    data_class: type[MaskedData] = MaskedData
    network_class: type[MaskedTransformer] = MaskGIT
    paper = "2202.04200"

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(self.data_class, recipe.data, "data")
        self.init = read_options(MaskedInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.tokenizer = load_tokenizer(self.init.tokenizer).tokenizer.requires_grad_(False)
        can = self.tokenizer.capabilities
        check_size(can, self.data.size)
        self.text = frozen_caption_encoder(self.init.text_encoder)
        self.source = self.open()
        shape = {"grid": self.data.size // can.multiple, "codebook_size": can.codebook_size}
        if self.text is None:
            shape["num_classes"] = max(1, len(self.source.classes))
        else:
            self.check_captions(self.text)
            shape["caption_dim"] = self.text.dim
        self.model = self.objective(start_network(self.network_class, self.init.model, recipe.model, shape))
        self.codes = Extracted(len(self.source), lambda index: self._encode(self.source, index), torch.int32)
        self.labels = Extracted(len(self.source), self.source.labels, torch.long)

    def open(self) -> Source:
        """Returns the pictures that it trains on."""
        return open_source(self.data, self.data.size, finite=True, by_class=self.text is None)

    def objective(self, network: MaskedTransformer) -> MaskedObjective:
        """Returns what is trained."""
        return MaskedObjective(network, self.data.smoothing, self.term(network))

    def term(self, network: MaskedTransformer) -> nn.Module | None:
        """Returns a loss beside the published one, see MaskedObjective; none."""
        return None

    @torch.no_grad()
    def _encode(self, source: Source, index: Tensor) -> Tensor:
        """Returns the codes of pictures, [B, 1, L], or of classes upright and mirrored, [B, 2, L]."""
        device = next(self.model.parameters()).device
        images = source.pictures(index).to(device)
        sides = [images] if self.text is not None else [images, images.flip(-1)]
        codes = self.tokenizer.to(device).encode(torch.stack(sides, 1).flatten(0, 1))
        return codes.flatten(1).unflatten(0, (len(images), -1)).cpu()

    @torch.no_grad()
    def read(self, source: Source, draw: Draw) -> Tensor:
        """Returns the mean features of pictures' captions, [B, caption_dim]."""
        return Condition(*self.text(source.captions(draw))).mean.float()

    def draw(self, step: int, rows: slice) -> Draw:
        """Returns the pictures of a step's rows."""
        return self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns codes of pictures, their classes or captions, and one mask ratio for the batch; pictures of classes
        are mirrored or not by a coin."""
        size, network = self.recipe.batch_size, self.model.network
        draw = self.draw(step, rows)
        mask, earlier = self.masks(size, network.config.seq_len)
        side = torch.randint(2, (size,))[rows]
        dropped = (torch.rand(size) < self.data.class_dropout)[rows]
        codes = self.codes[draw.index]
        side = side % codes.shape[1]
        if self.text is not None:
            values = self.read(self.source, draw)
        else:
            values = self.labels[draw.index].masked_fill(dropped, network.config.num_classes)
        codes = codes[torch.arange(len(side)), side].long()
        batch = {"codes": codes, "values": values, "mask": mask[rows]} | self.told(draw, side)
        return batch if earlier is None else batch | {"earlier": earlier[rows]}

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns what ``term`` is told of each code; ``mirrored`` is 0 or 1, [B]. Nothing."""
        return {}

    def masks(self, batch: int, length: int) -> tuple[Tensor, Tensor | None]:
        """Returns the mask of a batch [B, L], and that of the step before it, if one is simulated."""
        ratio = float(torch.distributions.Beta(*self.data.ratio).sample())
        return hide(torch.rand(batch, length), ratio), None

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the loss of held-out pictures at fixed masks."""
        network, held_out, index = self.model.network, self.source.held_out(), self.held_out_index()
        device = network.norm.weight.device
        codes = torch.cat([self._encode(held_out, part)[:, 0] for part in index.split(64)]).long()
        torch.manual_seed(self.recipe.seed)
        mask = hide(torch.rand(codes.shape), self.data.ratio[0] / sum(self.data.ratio))
        values = held_out.labels(index) if self.text is None else self.read(held_out, Draw(index, index * 0))
        objective = MaskedObjective(network, self.data.smoothing)
        loss, _ = objective(*(x.to(device) for x in (codes, values, mask)))
        null, _ = objective(codes.to(device), network.null_condition(len(codes)), mask.to(device))
        return {"held_out_loss": float(loss), "held_out_loss_without_condition": float(null)}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the generator as an embedded model."""
        network, parts, task = self.model.network, {"tokenizer": self.init.tokenizer}, "class-to-image"
        network.save_pretrained(directory, torch.bfloat16)
        if self.text is not None:
            task = "text-to-image"
            parts["text_encoder"] = self.init.text_encoder
        self.write_card(directory, network, task, network.family, metrics, steps, parts, self.paper)


class ENATTask(MaskGITTask):
    """The ``enat`` task: see ENATData and MaskedInit."""

    data_class = ENATData
    network_class = ENAT
    paper = "2411.06959"

    def objective(self, network: ENAT) -> ENATObjective:
        """Returns what is trained."""
        return ENATObjective(network, self.data.smoothing, self.term(network), self.data.average)

    def masks(self, batch: int, length: int) -> tuple[Tensor, Tensor | None]:
        """Returns the mask of a batch, and in some of them that of an earlier step, which hides some more."""
        mask, _ = super().masks(batch, length)
        if float(torch.rand(())) >= self.data.reuse:
            return mask, None
        visible = int((~mask[0]).sum())
        kept = round(visible * float(torch.rand(())))
        scores = torch.rand(batch, length).masked_fill(mask, torch.inf)
        return mask, scores.argsort(1).argsort(1) >= kept

    def after_step(self, step: int) -> None:
        """Average the weights."""
        self.model.follow()
