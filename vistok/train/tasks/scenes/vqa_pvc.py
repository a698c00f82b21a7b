"""Train PVC's progressive tower in the pipeline of the small LLaVA (arXiv 2412.09613)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.vqa import llava_processor
from vistok.projectors.learned.pvc import ProgressiveEncoder
from vistok.projectors.learned.pvc_llava import PvcVisionConfig
from vistok.train.options import read_options
from vistok.train.tasks.scenes.vqa import VqaObjective, VqaTask


@dataclass(frozen=True, kw_only=True)
class PvcModel:
    """Entries of ``model`` of the ``vqa-pvc`` task.

    Attributes:
        temporal_layers: layers that look over the frames, see ProgressiveEncoder.
    """

    temporal_layers: int


class PvcObjective(VqaObjective):
    """As :class:`VqaObjective`, with PVC's tower; what a scene holds is read from the first frame's patches."""

    def __init__(self, llava: nn.Module, supervision: float):
        super().__init__(llava, supervision)
        self.heads = type(self.heads)(llava.config.vision_config.width)

    def visual_tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base = self.llava.model
        pvc = base.vision_tower.pvc
        patches, time = pvc.patches(images)
        packed = pvc.connector(patches, pvc.encoder.time_embed(time))
        return base.multi_modal_projector(packed), patches[:, 0], patches[:, 0].mean(1)


@torch.no_grad()
def copy_tower(encoder: ProgressiveEncoder, clip: nn.Module, images: Tensor) -> None:
    """Starts a progressive encoder from a CLIP tower of the same width; the temporal layers stay closed.

    CLIP normalises its embeddings, which the progressive encoder does not: the norm's scale and shift go into the
    embeddings, with the spread of each token replaced by its mean over some pictures.

    Args:
        encoder: with as many layers as are taken.
        clip: CLIPVisionModel.
        images: [B, 3, H, W].
    """
    embeddings, norm = clip.embeddings, clip.pre_layrnorm
    scale = norm.weight / embeddings(images).std(-1, correction=0).mean()

    def normed(x: Tensor, dim: int) -> Tensor:
        shape = [1] * x.ndim
        shape[dim] = -1
        return (x - x.mean(dim, keepdim=True)) * scale.view(shape)

    encoder.patch_embed.weight.copy_(normed(embeddings.patch_embedding.weight, 0))
    encoder.patch_embed.bias.zero_()
    encoder.position.copy_((normed(embeddings.position_embedding.weight, 1) + norm.bias)[None])
    encoder.cls_token.copy_(normed(embeddings.class_embedding, 0)[None, None])
    for mine, theirs in zip(encoder.layers, clip.encoder.layers, strict=False):
        attention = theirs.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        mine.attention.qkv.weight.copy_(torch.cat([p.weight for p in projections]))
        mine.attention.qkv.bias.copy_(torch.cat([p.bias for p in projections]))
        mine.attention.out.load_state_dict(attention.out_proj.state_dict())
        mine.norm1.norm.load_state_dict(theirs.layer_norm1.state_dict())
        mine.norm2.norm.load_state_dict(theirs.layer_norm2.state_dict())
        width = len(theirs.mlp.fc1.weight)  # further units of mine say nothing at first
        mine.mlp[0].weight[:width].copy_(theirs.mlp.fc1.weight)
        mine.mlp[0].bias[:width].copy_(theirs.mlp.fc1.bias)
        mine.mlp[2].weight.zero_()
        mine.mlp[2].weight[:, :width].copy_(theirs.mlp.fc2.weight)
        mine.mlp[2].bias.copy_(theirs.mlp.fc2.bias)


def pvc_from_llava(llava: nn.Module, temporal_layers: int) -> nn.Module:
    """Returns a LLaVA with PVC's tower, begun from the tower and language model of one whose last layer is not read."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    old = llava.config
    clip = old.vision_config
    vision = PvcVisionConfig(
        image_size=clip.image_size,
        patch_size=clip.patch_size,
        width=clip.hidden_size,
        num_attention_heads=clip.num_attention_heads,
        num_hidden_layers=clip.num_hidden_layers - 1,
        temporal_layers=temporal_layers,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=old.text_config,
        image_token_index=old.image_token_id,
        image_seq_length=vision.tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    images = render(sample_scenes(64, 0), clip.image_size)
    copy_tower(model.model.vision_tower.pvc.encoder, llava.model.vision_tower, images)
    model.model.language_model.load_state_dict(llava.model.language_model.state_dict())
    model.lm_head.load_state_dict(llava.lm_head.state_dict())
    return model


class PvcTask(VqaTask):
    """The ``vqa-pvc`` task: starts from the LLaVA that ``init.llava`` names."""

    family = "pvc"
    paper = "2412.09613"

    def build(self) -> PvcObjective:
        layers = read_options(PvcModel, self.recipe.model, "model").temporal_layers
        return PvcObjective(pvc_from_llava(self.start(), layers), self.data.supervision)

    def save(self, directory: Path) -> None:
        self.model.llava.save_pretrained(directory)
        # Four frames of a token for 4x4 patches: as many tokens as blocks of 2x2 patches.
        llava_processor(self.side, 2 * self.patch).save_pretrained(directory)
