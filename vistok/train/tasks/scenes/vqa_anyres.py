"""Train a small LLaVA-NeXT on larger pictures, from a LLaVA: a thumbnail and four crops, packed as in transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import render
from vistok.data.scenes.vqa import llava_next_processor, pinpoints
from vistok.data.scenes.world import Scenes
from vistok.train.options import NoEntries, read_options
from vistok.train.tasks.scenes.tower import patch_targets, tower_states
from vistok.train.tasks.scenes.vqa import VqaObjective, VqaTask

GRID = 2  # crops along a side


def crops(maps: Tensor) -> Tensor:
    """Returns the crops of pictures or of maps of patches [B, C, H, W], row by row: [B, 4, C, H/2, W/2]."""
    return maps.unflatten(3, (GRID, -1)).unflatten(2, (GRID, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def anyres_views(images: Tensor) -> Tensor:
    """Returns thumbnail and crops of pictures [B, 3, 2s, 2s] as LLaVA-NeXT's processor makes them, [B, 5, 3, s, s]."""
    side = images.shape[-1] // GRID
    small = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([small[:, None], crops(images)], 1)


class AnyresObjective(VqaObjective):
    """As :class:`VqaObjective`, of pictures in views [B, 5, 3, s, s]; the CLS summary is read from the thumbnail."""

    def visual_tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base = self.llava.model
        batch, views = images.shape[:2]
        states = tower_states(base.vision_tower, images.flatten(0, 1))
        patches = states[base.config.vision_feature_layer][:, 1:]
        features = base.multi_modal_projector(patches).unflatten(0, (batch, views))
        side = round(features.shape[2] ** 0.5)
        canvas = features[:, 1:].unflatten(1, (GRID, GRID)).unflatten(3, (side, side))  # [B, 2, 2, s, s, D]
        canvas = canvas.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, 2s, 2s, D]
        ends = base.image_newline.to(canvas.dtype).expand(batch, GRID * side, 1, -1)
        tokens = torch.cat([features[:, 0], torch.cat([canvas, ends], 2).flatten(1, 2)], 1)
        cls = base.vision_tower.post_layernorm(states[-1][::views, 0])
        return tokens, patches.unflatten(0, (batch, views)).flatten(1, 2), cls


def next_from_llava(llava: nn.Module) -> nn.Module:
    """Returns a LLaVA-NeXT with the weights of a LLaVA and a new row end."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    old = llava.config
    side = old.vision_config.image_size
    config = LlavaNextConfig(
        vision_config=old.vision_config,
        text_config=old.text_config,
        image_token_index=old.image_token_id,
        image_seq_length=old.image_seq_length,
        image_grid_pinpoints=pinpoints(side),
    )
    model = LlavaNextForConditionalGeneration(config)
    state = llava.state_dict()
    state["model.image_newline"] = model.model.image_newline.detach()
    model.load_state_dict(state)
    return model


class AnyresTask(VqaTask):
    """The ``vqa-anyres`` task: starts from the LLaVA that ``init.llava`` names."""

    family = "llava_next"
    paper = None

    def build(self) -> AnyresObjective:
        read_options(NoEntries, self.recipe.model, "model")
        return AnyresObjective(next_from_llava(self.start()), self.data.supervision)

    def pictures(self, scenes: Scenes) -> Tensor:
        return anyres_views(render(scenes, GRID * self.side))

    def patch_targets(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Returns those of the thumbnail, then of each crop, whose offsets are in sides of a view."""
        patches = self.side // self.patch
        large = (x.unflatten(2, (GRID * patches,) * 2) for x in patch_targets(scenes, GRID * self.side, self.patch))
        classes, offsets = (crops(x).flatten(3).transpose(1, 2).flatten(2) for x in large)
        small_classes, small_offsets = patch_targets(scenes, self.side, self.patch)
        return torch.cat([small_classes, classes], 2), torch.cat([small_offsets, GRID * offsets], 2)

    def save(self, directory: Path) -> None:
        self.model.llava.save_pretrained(directory)
        llava_next_processor(self.side, self.patch).save_pretrained(directory)
