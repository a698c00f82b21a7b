"""The vision networks of TokenFlow's semantic branch: those of transformers, and the names of the published weights.

Published weights carry OpenAI's names for CLIP and those of transformers 4 for SigLIP. The embedded one, ``scenes``,
is the trunk of ``scenes-features``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import unknown_name
from vistok.tokenizers.tokenflow_config import TokenFlowConfig

BACKBONES = ("clip", "siglip", "scenes")
PREFIX = "encoder_vqkd."
_CLIP_NAMES = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def build_backbone(config: TokenFlowConfig) -> nn.Module:
    """The untrained vision network of a shape.

    Raises:
        VistokError: unknown backbone.
    """
    if config.backbone not in BACKBONES:
        raise unknown_name("TokenFlow backbone", config.backbone, [*BACKBONES, "none"])
    if config.backbone == "scenes":
        from vistok.models.vision.inception import fold_batch_norms
        from vistok.models.vision.scenes import SceneFeatures

        return fold_batch_norms(SceneFeatures().eval()).trunk
    import transformers

    shape = {
        "hidden_size": config.backbone_width,
        "num_hidden_layers": config.backbone_layers,
        "num_attention_heads": config.backbone_heads,
        "intermediate_size": config.backbone_mlp,
        "patch_size": config.backbone_patch,
        "image_size": config.image_size,
    }
    if config.backbone == "clip":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape, hidden_act="quick_gelu"))
    else:
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape))
    return getattr(model, "vision_model", model)  # some versions of transformers wrap the tower once more


def backbone_features(backbone: nn.Module, kind: str, images: Tensor, side: int) -> Tensor:
    """Patch features [B, N, W] of pictures in [-1, 1].

    Args:
        backbone: of ``build_backbone``.
        kind: one of ``BACKBONES``.
        images: [B, 3, H, W].
        side: of the grid of patches, which only ``scenes`` needs to be told: its map is resized and normalised.

    CLIP sees them as they are, without its own normalisation, as it was fine-tuned; its last layer norm is applied.
    SigLIP gives the states before its last layer.
    """
    if kind == "scenes":
        maps = F.interpolate(backbone(images), (side, side), mode="bilinear").flatten(2).transpose(1, 2)
        return F.layer_norm(maps, maps.shape[-1:])
    if kind == "clip":
        return backbone.post_layernorm(backbone(images).last_hidden_state[:, 1:])
    return backbone(images.clamp(-1, 1), output_hidden_states=True).hidden_states[-2]


def convert_backbone(state: Mapping[str, Tensor], config: TokenFlowConfig) -> dict[str, Tensor]:
    """Published weights of a whole tokenizer with the backbone's under the names of transformers.

    Positions of CLIP and of the semantic decoder, which were trained at 224 pixels, are resized to those of ``config``.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(PREFIX):
            resize = key == "decoder_vqkd.pos_embed"
            converted[key] = _resize_positions(value[0], config.scales[-1])[None] if resize else value
            continue
        name = key.removeprefix(PREFIX).removeprefix("vision_model.")
        if config.backbone == "clip":
            for pattern, replacement in _CLIP_NAMES:
                name = re.sub(pattern, replacement, name)
        if name == "embeddings.position_embedding.weight" and config.backbone == "clip":
            value = _resize_positions(value, config.image_size // config.backbone_patch)
        if match := re.fullmatch(r"(encoder\..*\.)in_proj_(weight|bias)", name):
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                converted[f"{PREFIX}{match[1]}{part}_proj.{match[2]}"] = tensor
        else:
            converted[PREFIX + name] = value
    return converted


def _resize_positions(table: Tensor, side: int) -> Tensor:
    """Positions [1 + n * n, W] of a class token and a square grid, resized to ``side`` as DINO's code does.

    The scale is that of a side longer by 0.1, which moves the sampling points a little; the weights were used so.
    """
    old = round((len(table) - 1) ** 0.5)
    if old == side:
        return table
    grid = table[1:].t().reshape(1, -1, old, old)
    scale = (side + 0.1) / old
    resized = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:1], resized.flatten(2)[0].t()])
