"""Croc's pre-training stage on captions of scenes (arXiv 2410.14332), before a small LLaVA learns from questions.

The tower of a trained LLaVA is kept and frozen; projector and language model start anew. Visual tokens are normalised,
most are replaced by prompt tokens, and the model captions the picture and restores them. ``reference`` does as the
released code; ``reconstruct: false`` is the plain projector stage to compare with. The exported LLaVA is what the
``vqa`` task goes on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, groups, render, sample_scenes
from vistok.data.scenes.language import NUMBERS, RELATIONS, plural, relation
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import ASSISTANT, BEGIN, IGNORE, USER, llava_processor, token_ids
from vistok.data.scenes.world import Scenes
from vistok.projectors.learned.croc import (
    IMAGE_WEIGHT,
    PromptPool,
    Reconstruction,
    caption_loss,
    choose,
    croc_state,
    mixed_mask,
    normalize_projector,
    reconstruction_loss,
)
from vistok.train.export import write_training_card
from vistok.train.options import Fraction, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.extension import ExtensionInit, slots
from vistok.train.tasks.scenes.llava import load_llava
from vistok.train.tasks.scenes.tower import tower_states
from vistok.train.trainer import Task
from vistok.zoo.checkpoint import write_state_dict

SLOT = 28  # tokens of the longest caption
CROC_FILE = "croc.safetensors"


@dataclass(frozen=True, kw_only=True)
class CrocData:
    """Entries of ``data`` of the ``croc`` task.

    Attributes:
        seed: the world that is trained on.
        keep: visual tokens of a picture that are not replaced; a quarter if None.
        eval_pictures: how many held-out pictures are captioned.
    """

    seed: int
    keep: int | None = None
    eval_pictures: int = 128


@dataclass(frozen=True, kw_only=True)
class CrocModel:
    """Entries of ``model``.

    Attributes:
        pool: prompt tokens.
        heads, dropout: of the reconstruction head.
        weight: of the reconstruction loss.
        reconstruct: False for the plain stage: captions of pictures as they are, causal, no pool.
        reference: nearest prompt tokens with repetition, and the released mask.
    """

    pool: int = 128
    heads: int | None = None
    dropout: Fraction = 0.0
    weight: float = IMAGE_WEIGHT
    reconstruct: bool = True
    reference: bool = False


class CrocObjective(nn.Module):
    """Caption loss and reconstruction loss.

    Args:
        llava: with new projector and language model; its tower is frozen here.
        model: see CrocModel.
    """

    def __init__(self, llava: nn.Module, model: CrocModel):
        super().__init__()
        self.llava, self.options = llava, model
        llava.model.vision_tower.requires_grad_(False)
        width = llava.config.text_config.hidden_size
        vision = llava.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2
        self.pool = PromptPool(model.pool, width)
        nn.init.normal_(self.pool.mask_token, std=width**-0.5)  # about the length of what it stands for
        self.head = Reconstruction(width, tokens, model.heads, dropout=model.dropout)
        if not model.reconstruct:
            self.pool.requires_grad_(False)
            self.head.requires_grad_(False)
        ids = token_ids()
        self.register_buffer("opening", torch.tensor([ids[BEGIN], ids[USER]]), persistent=False)

    def losses(self, images: Tensor, captions: Tensor, labels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns caption loss and reconstruction loss, unweighted.

        Args:
            images: [B, 3, S, S].
            captions: tokens behind the picture, int64 [B, L].
            labels: the same as targets, ``IGNORE`` before the caption.
            chosen: visual tokens that are replaced, bool [B, N].
        """
        base, options = self.llava.model, self.options
        with torch.no_grad():
            patches = tower_states(base.vision_tower, images)[base.config.vision_feature_layer][:, 1:]
        targets = base.multi_modal_projector(patches).float()
        visual = targets
        if options.reconstruct:
            index = self.pool.match(targets.detach(), chosen, options.reference)
            visual = self.pool.replace(targets, index)
        embed = base.language_model.embed_tokens
        opening = embed(self.opening).expand(len(images), -1, -1)
        embeds = torch.cat([opening, visual.to(opening.dtype), embed(captions)], 1)
        before = opening.shape[1] + visual.shape[1]
        labels = torch.cat([labels.new_full((len(labels), before), IGNORE), labels], 1)
        image = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        image[:, opening.shape[1] : before] = True
        # Padding stands behind the captions, where a causal mask hides it from all that has a label.
        there = torch.ones_like(labels)
        plain = torch.zeros_like(image)
        mask = mixed_mask(image if options.reconstruct else plain, there, labels, options.reference)
        hidden = base.language_model(
            inputs_embeds=embeds, attention_mask=mask[:, None], use_cache=False
        ).last_hidden_state
        caption = caption_loss(self.llava.lm_head(hidden), labels)
        if not options.reconstruct:
            return caption, caption.new_zeros(())
        return caption, reconstruction_loss(self.head(hidden, image), targets, weight=1.0)

    def forward(self, images: Tensor, captions: Tensor, labels: Tensor, chosen: Tensor):
        caption, restored = self.losses(images, captions, labels, chosen)
        loss = caption + self.options.weight * restored
        return loss, {"caption": caption.detach(), "reconstruction": restored.detach()}


def describe(scenes: Scenes) -> list[str]:
    """Returns all that is true of each scene in the words of the small LLaVA: groups, a relation, the background."""
    out = []
    for scene, background in zip(groups(scenes), scenes.background.tolist(), strict=True):
        words = []
        for number, group in enumerate(scene):
            shape = group.shape if group.count == 1 else plural(group.shape)
            words += ["a" if group.count == 1 else NUMBERS[group.count], group.size, group.colour, shape]
            if number == 0 and len(scene) == 2 and (where := relation(group.centre, scene[1].centre)) is not None:
                words += RELATIONS[where][0].split()
        out.append(" ".join([*words, BACKGROUNDS[background], "background"]))
    return out


class CrocTask(Task):
    """The ``croc`` task: see CrocData, CrocModel and ExtensionInit, whose LLaVA gives the tower."""

    def __init__(self, recipe: Recipe):
        from transformers import LlavaForConditionalGeneration

        self.recipe = recipe
        self.data = read_options(CrocData, recipe.data, "data")
        options = read_options(CrocModel, recipe.model, "model")
        self.init = read_options(ExtensionInit, recipe.init, "init")
        check_training_seed(self.data.seed)
        trained = load_llava(self.init.llava)
        torch.manual_seed(recipe.seed)
        llava = LlavaForConditionalGeneration(trained.config)
        llava.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
        normalize_projector(llava)
        vision = trained.config.vision_config
        self.side, self.patch = vision.image_size, vision.patch_size
        self.tokens = (self.side // self.patch) ** 2
        self.keep = self.tokens // 4 if self.data.keep is None else self.data.keep
        self.model = CrocObjective(llava, options)

    def _batch(self, scenes: Scenes, keep: int, seed: int) -> dict[str, Tensor]:
        pairs = [[(ASSISTANT, text)] for text in describe(scenes)]
        captions, targets = slots(pairs, token_ids(), SLOT)
        labels = torch.full_like(targets, IGNORE)
        labels[..., 1:] = targets[..., :-1]
        # The end of the text is a label of the place behind the caption's last word.
        captions = torch.where(labels >= 0, labels, captions)
        generator = torch.Generator().manual_seed(seed)
        return {
            "images": render(scenes, self.side),
            "captions": captions[:, 0],
            "labels": labels[:, 0],
            "chosen": choose(len(scenes), self.tokens, keep, generator),
        }

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        return self._batch(sample_scenes(rows.stop - rows.start, self.data.seed, start), self.keep, start)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the held-out loss of captions in nats a word, and of rebuilding no, some and all tokens."""
        figures: dict[str, list[float]] = {}
        for start in range(0, self.data.eval_pictures, 32):
            scenes = sample_scenes(min(32, self.data.eval_pictures - start), HELD_OUT, start)
            for name, keep in (("_none_replaced", self.tokens), ("", self.keep), ("_all_replaced", 0)):
                batch = self._batch(scenes, keep, start)
                given = {key: value.to(self.model.opening.device) for key, value in batch.items()}
                caption, restored = self.model.losses(**given)
                figures.setdefault(f"caption_loss{name}", []).append(float(caption))
                figures.setdefault(f"reconstruction_loss{name}", []).append(float(restored))
        return {name: sum(values) / len(values) for name, values in figures.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the LLaVA with its processor, and pool and head under their published names."""
        self.model.bfloat16()
        self.model.llava.save_pretrained(directory)
        llava_processor(self.side, self.patch).save_pretrained(directory)
        if self.model.options.reconstruct:
            write_state_dict(directory / CROC_FILE, croc_state(self.model.pool, self.model.head))
        parts = {"tower": self.init.llava}
        write_training_card(
            directory, self.recipe, self.model.llava, "captioning", "llava", metrics, steps, parts, "2410.14332"
        )
