"""Train a FlexTok (arXiv 2502.13967): rectified flow in the latents of a frozen tokenizer, with nested dropout.

Of the published training the alignment with DINOv2 is left out, as its weights cannot be shipped; on scenes their
labels can stand in for it, see ``vistok.train.tasks.scenes.flextok``. With ``data.anchor`` tokens start at, and are
drawn to, what is in a patch of their own, so that they say something from the first step on, which the painter can
learn to heed. That term and the penalty on saturation are ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.eval.reconstruction.rate_distortion import quality_by_tokens
from vistok.ops.noise import derive_seed
from vistok.tokenizers.flextok import FlexTok, FlowDraws
from vistok.tokenizers.kl import KLAutoencoder
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw, Extracted, PictureData, open_source
from vistok.train.tasks.pictures import PictureTask
from vistok.train.tasks.starts.flextok import OrderedComponents, start_spatially
from vistok.zoo.pretrained import BASE
from vistok.zoo.registry import is_embedded

TRAINING_LAWS = ("null_probability", "length_law", "time_shift", "repa_layer")  # may change from run to run
SATURATED = 2.0  # where the bound of FSQ passes on hardly any gradient


@dataclass(frozen=True, kw_only=True)
class FlexTokData(PictureData):
    """Entries of ``data`` of the ``flextok`` task, beside those of PictureData.

    Attributes:
        anchor: weight of the term that draws tokens to their patches, see ``starts.flextok``; new weights then start
            there, even if it is 0.
        anchor_pictures: how many pictures define the patches' components.
        saturation: weight of the penalty on latents beyond ``SATURATED``. Where they grow too far, the bound of FSQ has
            no gradient left, and all pictures get the same tokens.
        keep_tokens: train what paints alone. Pictures keep their tokens, so that generators of them stay of use.
    """

    anchor: float | None = None
    anchor_pictures: int = field(default=256, metadata={"was": "anchor_scenes"})
    saturation: float = 0.0
    keep_tokens: bool = False


@dataclass(frozen=True, kw_only=True)
class FlexTokInit:
    """Entries of ``init``: one of both.

    Attributes:
        kl: the autoencoder in whose latents a new tokenizer works.
        tokenizer: weights to go on from, which have theirs inside.
    """

    kl: str | None = None
    tokenizer: str | None = None


class FlexTokObjective(nn.Module):
    """Squared error of the velocity, the distance from the anchor, and a penalty on saturation.

    Args:
        tokenizer: what is trained.
        saturation: weight of the penalty.
        anchor: what all tokens' latents but the first's are drawn to; nothing if None.
        anchor_weight: of the squared distance.
    """

    def __init__(
        self,
        tokenizer: FlexTok,
        saturation: float = 0.0,
        anchor: OrderedComponents | None = None,
        anchor_weight: float = 0.0,
    ):
        super().__init__()
        self.tokenizer, self.saturation = tokenizer, saturation
        self.anchor, self.anchor_weight = anchor, anchor_weight

    def measure(self, maps: Tensor, draws: FlowDraws):
        """Returns the training pass of latents [B, C, h, w], its loss, and the parts of this."""
        out = self.tokenizer.training_pass(maps, draws)
        saturated = F.relu(out.latents.float().abs() - SATURATED).square().mean()
        loss, metrics = out.loss + self.saturation * saturated, {"flow": out.loss, "saturated": saturated}
        if self.anchor is not None:
            metrics["anchor"] = F.mse_loss(out.latents[:, 1:].float(), self.anchor(maps))
            loss = loss + self.anchor_weight * metrics["anchor"]
        return out, loss, metrics

    def forward(self, maps: Tensor, **draws: Tensor):
        """Returns the loss of latents [B, C, h, w] under draws, the fields of ``FlowDraws``, and its parts."""
        _, loss, metrics = self.measure(maps, FlowDraws(**draws))
        return loss, {name: x.detach() for name, x in metrics.items()}


class FlexTokTask(PictureTask):
    """The ``flextok`` task: see FlexTokData and FlexTokInit; pictures have the tokenizer's size.

    Their latents are computed once, as they are first needed.
    """

    data_class = FlexTokData

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(self.data_class, recipe.data, "data")
        init = read_options(FlexTokInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.tokenizer = self._tokenizer(init)
        self.base = init.kl if self.tokenizer.card is None else self.tokenizer.card.parts.get(BASE)
        self.tokenizer.vae.requires_grad_(False)
        self.tokenizer.encoder.requires_grad_(not self.data.keep_tokens)
        config = self.tokenizer.config
        self.source = open_source(self.data, config.image_size, finite=True)
        self.maps = Extracted(len(self.source), self._extract, torch.float16)
        anchor = None
        if self.data.anchor is not None:
            maps = self.maps[torch.arange(min(self.data.anchor_pictures, len(self.source)))].float()
            anchor = OrderedComponents(config, maps)
            if init.tokenizer is None:
                start_spatially(self.tokenizer, anchor, maps, torch.Generator().manual_seed(recipe.seed))
        self.model = self.objective(anchor)

    def _tokenizer(self, init: FlexTokInit) -> FlexTok:
        model = self.recipe.model
        if init.tokenizer is not None:
            tokenizer = start_network(FlexTok, init.tokenizer, model, free=TRAINING_LAWS)
            laws = {key: model[key] for key in TRAINING_LAWS if key in model}
            tokenizer.config = replace(tokenizer.config, **laws)
            return tokenizer
        if init.kl is None:
            raise VistokError("name the autoencoder as 'init.kl', or a tokenizer to go on from as 'init.tokenizer'.")
        kl = KLAutoencoder.from_pretrained(init.kl)
        tokenizer = start_network(FlexTok, None, model, {"vae": False, "kl": asdict(kl.config)})
        tokenizer.vae.kl.load_state_dict(kl.state_dict())
        return tokenizer

    def objective(self, anchor: OrderedComponents | None) -> FlexTokObjective:
        """Returns what is trained."""
        return FlexTokObjective(self.tokenizer, self.data.saturation, anchor, self.data.anchor or 0.0)

    @torch.no_grad()
    def _extract(self, index: Tensor) -> Tensor:
        device = next(self.tokenizer.parameters()).device
        return self.tokenizer.maps(self.source.pictures(index).to(device))

    def labels(self, draw: Draw) -> dict[str, Tensor]:
        """Returns what the objective is told of pictures beside their latents."""
        return {}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns latents, pass after pass, with new noise, times and lengths in each."""
        size = self.recipe.batch_size
        draw = self.source.draw(step * size + rows.start, rows.stop - rows.start)
        draws = self.tokenizer.draw(size, torch.Generator().manual_seed(derive_seed(self.data.seed, step)))
        drawn = {name: each[rows] for name, each in draws._asdict().items()}
        return {"maps": self.maps[draw.index].float()} | self.labels(draw) | drawn

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns PSNR in dB of held-out pictures at few, some and all tokens, and usage of codes."""
        usage = CodebookUsage(self.tokenizer.regularizer.size)
        device = next(self.tokenizer.parameters()).device
        registers = self.tokenizer.config.registers
        points = quality_by_tokens(
            self.tokenizer,
            (images.to(device) for images in self.held_out_pictures(32)),
            sorted({1, 1 + registers // 8, registers}),
            usage.update,
            self.on_outputs,
        )
        metrics = {f"psnr_{point.setting}": point.psnr for point in points}
        return metrics | {"codebook_usage": usage.usage, "codebook_perplexity": usage.perplexity}

    def on_outputs(self, tokens: int, images: Tensor) -> None:
        """Is shown reconstructions [B, 3, H, W] of held-out pictures from their first ``tokens``."""

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the tokenizer as an embedded model, with the autoencoder unless that is embedded itself."""
        parts, without = {}, set[str]()
        if self.base is not None and is_embedded(self.base):
            parts[BASE] = self.base
            without = {name for name in self.tokenizer.state_dict() if name.startswith(FlexTok.base_prefix)}
        self.tokenizer.save_pretrained(directory, torch.float16, without)
        entries = ("image-tokenizer", "flextok", metrics, steps, parts)
        self.write_card(directory, self.tokenizer, *entries, paper="2502.13967")
