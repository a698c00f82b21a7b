"""Train SEED (arXiv 2307.08041): first its causal queries by contrast with captions, then the codebook, and last what
paints where the tokenizer has a head for pixels.

The first stage (``data.queries_until`` steps) trains the Q-Former alone. The feature of a picture is its last query, as
in the reference, which therefore has read all others. The second freezes it and trains the rest by
``5 L_vq + 2 L_rec + 0.5 L_img``: the codes (beta on the codebook term), the cosine between the Q-Former's states and
those rebuilt from the codes, and the squared error of the image embedding. Captions are encoded by a frozen encoder of
ours where the reference trains BERT; dead codes are revived, which it does not do, since of few codes most die. The
third, from step ``data.codes_until``, is ours: the tokens stay, and the head learns the hidden ones among the codes of
its VQ tokenizer, as MaskGIT does (arXiv 2202.04200).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.text_encoder import TextEncoder
from vistok.models.vision.scenes import DIM, load_scene_features
from vistok.ops.noise import derive_seed
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.tokenizers.seed import Seed
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Extracted, PictureData, open_source
from vistok.train.tasks.masked import hide
from vistok.train.tasks.pictures import PictureTask
from vistok.train.tasks.revival import RevivalData
from vistok.zoo import resolve

TEMPERATURE = 0.07  # where the contrast begins
CODES, REBUILT, EMBEDDING = 5.0, 2.0, 0.5  # weights of the second stage
HELD_OUT_HIDDEN = 0.75  # share of the VQ tokenizer's codes that are hidden where the third is evaluated


@dataclass(frozen=True, kw_only=True)
class SeedData(PictureData, RevivalData):
    """Entries of ``data`` of the ``seed`` task, beside those of PictureData and RevivalData.

    Attributes:
        queries_until: step until which the Q-Former is trained by contrast with captions; from then on the codebook is.
        codes_until: step until which it is; from then on the head for pixels is trained alone. To the end if absent.
    """

    queries_until: int = 0
    codes_until: int | None = None


@dataclass(frozen=True, kw_only=True)
class SeedInit:
    """Entries of ``init``.

    Attributes:
        tokenizer: weights to go on from; new ones of the shape ``model`` if absent.
        tower: weights of the frozen vision network: ``scenes-features``, or those in ``tokenizer`` if absent.
        text_encoder: of the captions; only the first stage needs it.
        teacher: whose image embeddings are learned: ``scenes-features``, or a CLIP with a projection that transformers
            can load (the published ones are those of CLIP ViT-H/14).
    """

    tokenizer: str | None = None
    tower: str | None = None
    text_encoder: str | None = None
    teacher: str = "scenes-features"


class SeedObjective(nn.Module):
    """The three stages.

    Args:
        tokenizer: what is trained.
        teacher: from pictures [B, 3, H, W] in [-1, 1] to image embeddings [B, E], frozen.
        text_width: of caption features; 0 without a first stage.
    """

    def __init__(self, tokenizer: Seed, teacher: nn.Module, text_width: int):
        super().__init__()
        self.tokenizer, self.teacher = tokenizer, teacher
        if text_width:
            self.text = nn.Linear(text_width, tokenizer.config.width)
            self.image = nn.Linear(tokenizer.config.width, tokenizer.config.width)
            self.temperature = nn.Parameter(torch.tensor(TEMPERATURE).log())

    def forward(self, images: Tensor | None = None, captions: Tensor | None = None, **painted: Tensor):
        """Returns the loss of a batch and its parts.

        Args:
            images: [B, 3, H, W] in [-1, 1]; None in the third stage.
            captions: features [B, D] of their captions in the first stage.
            painted: see ``pixels``, in the third.
        """
        if images is None:
            return self.pixels(**painted)
        with torch.no_grad():
            features = self.tokenizer.features(images)
        return self.codebook(images, features) if captions is None else self.contrast(features, captions)

    def codebook(self, images: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the second stage's loss of pictures and their features [B, m, W], and its parts."""
        out = self.tokenizer(features)
        with torch.no_grad():
            wanted = self.teacher(images)
        rebuilt = 1 - F.cosine_similarity(out.rebuilt.float(), out.states.detach().float(), dim=-1).mean()
        embedding = F.mse_loss(out.embedding.float(), wanted.float())
        loss = CODES * out.quantized.loss + REBUILT * rebuilt + EMBEDDING * embedding
        parts = {"codes": out.quantized.loss, "rebuilt": rebuilt, "embedding": embedding}
        return loss, {name: value.detach() for name, value in parts.items()}

    def pixels(self, tokens: Tensor, codes: Tensor, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the cross-entropy of hidden codes.

        Args:
            tokens: of pictures, [B, n].
            codes: of the head's VQ tokenizer, [B, L].
            hidden: which of them are, bool [B, L].
        """
        head = self.tokenizer.pixel_head
        with torch.no_grad():
            features = self.tokenizer.decoded(self.tokenizer.quantize.codes(tokens))
        logits = head(features, codes.masked_fill(hidden, head.mask_id))
        loss = F.cross_entropy(logits[hidden].float(), codes[hidden])
        return loss, {"pixels": loss.detach()}

    def contrast(self, features: Tensor, captions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the cross-entropy of which caption belongs to which picture, both ways, by the last query."""
        last = self.tokenizer.states(features)[:, -1]
        images, texts = F.normalize(self.image(last), dim=-1), F.normalize(self.text(captions), dim=-1)
        logits = (images @ texts.T / self.temperature.exp()).float()
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        found = (logits.argmax(1) == own).float().mean()
        return loss, {"contrast": loss.detach(), "found": found}


class ScenesTeacher(nn.Module):
    """The embedded ``scenes-features`` as a teacher of image embeddings, normalised."""

    width = DIM

    def __init__(self) -> None:
        super().__init__()
        self.network = load_scene_features()

    def forward(self, images: Tensor) -> Tensor:
        return F.layer_norm(self.network(images)["features"], (DIM,))


class ClipTeacher(nn.Module):
    """A CLIP of transformers as a teacher: its projected image embedding.

    Args:
        name: a folder, or a hub id.
    """

    def __init__(self, name: str):
        super().__init__()
        from transformers import CLIPVisionModelWithProjection

        from vistok.zoo.transformers import load_model

        self.network = load_model(name, CLIPVisionModelWithProjection, "CLIP vision model with a projection")
        self.width = self.network.config.projection_dim

    def forward(self, images: Tensor) -> Tensor:
        from vistok.tokenizers.seed_tower import CLIP_MEAN, CLIP_STD

        side = self.network.config.image_size
        mean, std = (images.new_tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
        pixels = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network(pixel_values=((pixels + 1) / 2 - mean) / std).image_embeds


class SeedTask(PictureTask):
    """The ``seed`` task: see SeedData and SeedInit; pictures have the size ``model.image_size``."""

    data: SeedData

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(SeedData, recipe.data, "data")
        init = read_options(SeedInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        teacher = ScenesTeacher() if init.teacher == "scenes-features" else ClipTeacher(init.teacher)
        self.tokenizer = self._tokenizer(init, teacher.width)
        self.tokenizer.visual_encoder.requires_grad_(False)
        self.painter = None
        if self.tokenizer.config.pixels is not None:
            self.painter = VQTokenizer.from_pretrained(self.tokenizer.config.pixels).requires_grad_(False)
        self.text = self._captions(init)
        if self.painter is None and self.data.codes_until is not None:
            raise VistokError("'data.codes_until' begins the training of a head for pixels: name its 'model.pixels'.")
        size = self.tokenizer.config.image_size
        self.source = open_source(self.data, size, finite=self.data.codes_until is not None)
        self.kept = Extracted(len(self.source), self._extract, torch.int16)
        if self.text is not None:
            self.check_captions(self.text, held_out=False)
        width = self.text.dim if self.text is not None else 0
        self.model = SeedObjective(self.tokenizer, teacher.requires_grad_(False), width)

    def _tokenizer(self, init: SeedInit, width: int) -> Seed:
        if init.tokenizer is None and init.tower is None:
            raise VistokError("SEED reads a frozen vision network: name it as 'init.tower', or start from 'tokenizer'.")
        if init.tokenizer is not None:
            tokenizer = start_network(Seed, init.tokenizer, self.recipe.model)
            if tokenizer.config.embed_dim != width:
                raise VistokError(
                    f"'{init.tokenizer}' gives embeddings of {tokenizer.config.embed_dim} numbers and the teacher "
                    f"'{init.teacher}' of {width}: name the teacher that it was trained with as 'init.teacher'."
                )
        else:
            tokenizer = start_network(Seed, None, self.recipe.model, {"embed_dim": width})
        if tokenizer.config.tower == "none" or not tokenizer.config.reconstruct:
            raise VistokError("SEED is trained with a tower ('model.tower') and 'model.reconstruct: true'.")
        if init.tower == "scenes-features" and tokenizer.config.tower == "scenes":
            tokenizer.visual_encoder.trunk.load_state_dict(load_scene_features().trunk.state_dict())
        elif init.tower is not None:
            raise VistokError("'init.tower' is 'scenes-features' for 'model.tower: scenes': leave it out otherwise.")
        return tokenizer

    def _captions(self, init: SeedInit) -> TextEncoder | None:
        if not self.data.queries_until:
            return None
        if init.text_encoder is None:
            raise VistokError("the contrast with captions needs 'init.text_encoder', or 'data.queries_until: 0'.")
        folder = resolve(init.text_encoder)
        own = folder / "text_encoder"
        return TextEncoder.from_pretrained(own if own.is_dir() else folder, torch.float32).requires_grad_(False).eval()

    @property
    def _device(self) -> torch.device:
        return self.tokenizer.query_tokens.device

    @torch.no_grad()
    def _extract(self, index: Tensor) -> Tensor:
        """Returns what the third stage needs of pictures: their tokens, and then the codes of the VQ tokenizer."""
        images = self.source.pictures(index)
        tokens = self.tokenizer.encode(images.to(self._device)).cpu()
        return torch.cat([tokens, self.painter.to("cpu").encode(images).flatten(1)], 1)

    def paints(self, step: int) -> bool:
        """Returns whether the third stage has begun."""
        return self.data.codes_until is not None and step >= self.data.codes_until

    @torch.no_grad()
    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures, in the first stage with the features of their captions; in the third what they were made
        into, and what of this is hidden."""
        draw = self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)
        if self.paints(step):
            count = self.tokenizer.config.num_tokens
            tokens, codes = self.kept[draw.index].long().tensor_split([count], 1)
            generator = torch.Generator().manual_seed(derive_seed(self.data.seed, step))
            share, scores = torch.rand(2, self.recipe.batch_size, codes.shape[1], generator=generator)
            hidden = hide(scores[rows], math.cos(math.pi / 2 * float(share[0, 0])))
            return {"tokens": tokens, "codes": codes, "hidden": hidden}
        images = self.source.augmented(draw)
        if step >= self.data.queries_until:
            return {"images": images}
        features, mask = self.text(self.source.captions(draw))
        mask = mask[..., None].to(features.dtype)
        return {"images": images, "captions": (features * mask).sum(1) / mask.sum(1)}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Sets the codes to latents as the second stage begins, and revives dead ones in it."""
        begins = step == max(1, self.data.queries_until)
        if self.paints(step) or (not begins and (step <= self.data.queries_until or not self.data.revives(step))):
            return
        images = self.source.pictures(torch.arange(step, step + 4 * self.recipe.batch_size) % self._drawable)
        latents = self.tokenizer.latents(self.tokenizer.states(self.tokenizer.features(images.to(self._device))))
        latents = latents.float().movedim(-1, 1)
        quantizer = self.tokenizer.quantize
        counts = torch.bincount(quantizer.indices(latents).flatten().cpu(), minlength=quantizer.size)
        quantizer.revive(latents, counts * (not begins), torch.Generator().manual_seed(step))

    @property
    def _drawable(self) -> int:
        return len(self.source) if self.data.source == "folder" or self.data.pictures else 1 << 40

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the last two stages' terms on held-out pictures, usage of codes, and PSNR in dB of what is painted.

        What is hidden for the third is the same every time.
        """
        sums: dict[str, float] = {}
        usage, count, errors = CodebookUsage(self.tokenizer.config.codebook_size), 0, []
        generator = torch.Generator().manual_seed(self.recipe.seed)
        for images in self.held_out_pictures(self.recipe.batch_size):
            tokens = self.tokenizer.encode(images.to(self._device))
            terms = self.model(images.to(self._device))[1]
            if self.data.codes_until is not None:
                codes = self.painter.to("cpu").encode(images).flatten(1)
                hidden = hide(torch.rand(codes.shape, generator=generator), HELD_OUT_HIDDEN)
                terms |= self.model.pixels(tokens, codes.to(self._device), hidden.to(self._device))[1]
                painted = self.tokenizer.decode(tokens).clamp(-1, 1).cpu()
                errors.append(-10 * ((painted - images).square().mean((1, 2, 3)) / 4).log10())
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + len(images) * float(value)
            usage.update(tokens)
            count += len(images)
        metrics = {f"held_out_{name}": value / count for name, value in sums.items()}
        if errors:
            metrics["psnr"] = torch.cat(errors).mean().item()
        return metrics | {"codebook_usage": usage.usage, "codebook_perplexity": usage.perplexity}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the tokenizer as an embedded model."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        self.write_card(directory, self.tokenizer, "image-tokenizer", "seed", metrics, steps, paper="2307.08041")
