"""Train TokenPacker's projector in the pipeline of the small LLaVA (arXiv 2407.02392)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.projectors.learned.tokenpacker import TokenPacker
from vistok.train.options import read_options
from vistok.train.tasks.scenes.tower import tower_states
from vistok.train.tasks.scenes.vqa import VqaObjective, VqaTask


@dataclass(frozen=True, kw_only=True)
class TokenPackerModel:
    """Entries of ``model`` of the ``vqa-tokenpacker`` task, see TokenPacker.

    Attributes:
        num_heads, scale_factor: of the packer.
        states: hidden states of the tower that are its fine features.
    """

    num_heads: int
    scale_factor: int
    states: tuple[int, ...]


class TokenPackerObjective(VqaObjective):
    """As :class:`VqaObjective`, with TokenPacker between tower and language model."""

    def __init__(self, llava: nn.Module, supervision: float, packer: TokenPacker):
        super().__init__(llava, supervision)
        self.packer = packer
        llava.model.multi_modal_projector.requires_grad_(False)  # the packer stands in its place

    def network(self) -> nn.Module:
        return nn.ModuleList([self.llava, self.packer])

    def visual_tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base = self.llava.model
        states = tower_states(base.vision_tower, images)
        patches = states[base.config.vision_feature_layer][:, 1:]
        fine = torch.cat([states[i][:, 1:] for i in self.packer.states], -1)
        return self.packer(patches, fine), patches, base.vision_tower.post_layernorm(states[-1][:, 0])


class TokenPackerTask(VqaTask):
    """The ``vqa-tokenpacker`` task: starts from the LLaVA that ``init.llava`` names; all of it is trained on."""

    family = "tokenpacker"
    paper = "2407.02392"

    def build(self) -> TokenPackerObjective:
        model = read_options(TokenPackerModel, self.recipe.model, "model")
        llava = self.start()
        vision = llava.config.vision_config
        packer = TokenPacker(
            raw_grid=vision.image_size // vision.patch_size,
            embed_dim=vision.hidden_size,
            hidden_size=llava.config.text_config.hidden_size,
            num_heads=model.num_heads,
            scale_factor=model.scale_factor,
            states=model.states,
        )
        return TokenPackerObjective(llava, self.data.supervision, packer)

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.model.packer.save_pretrained(directory)
