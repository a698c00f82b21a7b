"""How each family of transformers models gets from pixels to visual tokens, opened up so that they can be thinned.

A family runs the model's own vision tower once and describes each picture by :class:`ImageTokens` and the plan of its
placeholders. With every token kept, the features are those of the model's ``get_image_features``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.projectors.apply.layout import Plan, crops_plan, single_view_plan, unpadded
from vistok.projectors.attention import LayerAttention
from vistok.projectors.capture import captured_attention
from vistok.projectors.interface import Canvas, Compressor, ImageTokens, Needs

Picture = tuple[ImageTokens, Plan]


class TowerOutput(NamedTuple):
    """What a tower gave: features [V, S, C] with CLS where it has one, attention by layer, hidden states by index."""

    features: Tensor
    has_cls: bool
    attention: dict[int, LayerAttention]
    states: dict[int, Tensor]

    def of(self, views: slice) -> TowerOutput:
        """The same for some of the views."""
        attention = {i: replace(a, query=a.query[views], keys=a.keys[views]) for i, a in self.attention.items()}
        states = {i: s[views] for i, s in self.states.items()}
        return TowerOutput(self.features[views], self.has_cls, attention, states)


def run_tower(tower: nn.Module, pixels: Tensor, layer: int | list[int], needs: Needs) -> TowerOutput:
    """Run a CLIP-like tower.

    Args:
        tower: the model's.
        pixels: [V, 3, H, W].
        layer: hidden state of the features; several are set side by side.
        needs: what the compressor reads.
    """
    has_cls = any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())
    wanted = [layer] if isinstance(layer, int) else list(layer)
    with captured_attention(tower, needs.attention, has_cls) as attention:
        output = tower(pixel_values=pixels, output_hidden_states=[*wanted, *needs.states], return_dict=True)
    features = torch.cat([output.hidden_states[i] for i in wanted], -1)
    states = {i: output.hidden_states[i][:, int(has_cls) :] for i in needs.states}
    return TowerOutput(features, has_cls, attention, states)


def _square(tokens: int) -> tuple[int, int]:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise VistokError(f"{tokens} patches of a view are no square grid, which this model's family promises.")
    return side, side


def _feature_settings(base: nn.Module, inputs: dict[str, Any]) -> tuple[int | list[int], str]:
    """Feature layer and strategy of a call, or of the configuration."""
    layer = inputs.get("vision_feature_layer")
    strategy = inputs.get("vision_feature_select_strategy")
    config = base.config
    layer = config.vision_feature_layer if layer is None else layer
    return layer, config.vision_feature_select_strategy if strategy is None else strategy


def _described(base: nn.Module, output: TowerOutput, strategy: str, plan: Plan, **layout: Any) -> Picture:
    """One picture of a model whose projector works token by token."""
    features = output.features
    if output.has_cls and strategy != "default":
        raise VistokError("this model sends the CLS token of each view to its language model: not supported yet.")
    cls, hidden = (features[:, :1], features[:, 1:]) if output.has_cls else (None, features)
    image = ImageTokens(
        hidden=hidden,
        cls=cls,
        grid=_square(hidden.shape[1]),
        project=base.multi_modal_projector,
        layers=base.vision_tower.config.num_hidden_layers,
        valid=plan.valid(*hidden.shape[:2]).to(hidden.device),
        attention=output.attention,
        states=output.states,
        **layout,
    )
    return image, plan


def llava_pictures(base: nn.Module, inputs: dict[str, Any], compressor: Compressor) -> Iterator[Picture]:
    """LLaVA-1.5: one view a picture."""
    layer, strategy = _feature_settings(base, inputs)
    if inputs.get("image_sizes") is not None:
        raise VistokError("LLaVA models with pictures of free size (Pixtral) are not supported yet.")
    needs = compressor.needs(base.vision_tower.config.num_hidden_layers)
    output = run_tower(base.vision_tower, inputs["pixel_values"], layer, needs)
    plan = single_view_plan(output.features.shape[1] - output.has_cls)
    for i in range(len(output.features)):
        yield _described(base, output.of(slice(i, i + 1)), strategy, plan)


def llava_next_pictures(base: nn.Module, inputs: dict[str, Any], compressor: Compressor) -> Iterator[Picture]:
    """LLaVA-NeXT: a thumbnail and crops, unpadded, with a newline after each row of crops."""
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        image_size_to_num_patches,
    )

    config = base.config
    side = config.vision_config.image_size
    layer, strategy = _feature_settings(base, inputs)
    sizes = [tuple(int(n) for n in size) for size in inputs["image_sizes"]]
    counts = [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in sizes]
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        pixels = torch.cat([views[:count] for views, count in zip(pixels, counts, strict=True)])
    needs = compressor.needs(base.vision_tower.config.num_hidden_layers)
    output = run_tower(base.vision_tower, pixels, layer, needs)
    grid = _square(output.features.shape[1] - output.has_cls)
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        views = output.of(slice(start, start + count))
        start += count
        rows, cols = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side)
        if count == 1:
            plan, canvas = single_view_plan(grid[0] * grid[1], newline=True), None
        else:
            canvas = Canvas(rows, cols, *unpadded((rows * grid[0], cols * grid[1]), size))
            plan = crops_plan(grid, canvas)
        yield _described(base, views, strategy, plan, canvas=canvas, newline=base.image_newline)


def _block_mean(block: int, scores: Tensor) -> Tensor:
    """Patch scores [..., P] to the mean of each block of a square grid, [..., P / block^2]."""
    side = round(scores.shape[-1] ** 0.5)
    flat = scores.reshape(-1, 1, side, side)
    return F.avg_pool2d(flat, block).flatten(1).unflatten(0, scores.shape[:-1])


def internvl_pictures(base: nn.Module, inputs: dict[str, Any], compressor: Compressor) -> Iterator[Picture]:
    """InternVL: tiles and thumbnail, each a picture of its own, whose tokens are blocks of patches."""
    layer, strategy = _feature_settings(base, inputs)
    tower = base.vision_tower
    needs = compressor.needs(tower.config.num_hidden_layers)
    if needs.states:
        raise VistokError(f"{compressor.name} is made for towers whose tokens are patches, not for InternVL's blocks.")
    output = run_tower(tower, inputs["pixel_values"].to(base.dtype), layer, needs)
    features = output.features[:, 1:] if strategy == "default" else output.features
    grid = _square(features.shape[1])
    packed = base.pixel_shuffle(features.unflatten(1, grid), scale_factor=base.config.downsample_ratio)
    block = round(1 / base.config.downsample_ratio)
    plan = single_view_plan(packed.shape[1] * packed.shape[2])
    for i in range(len(packed)):
        hidden = packed[i : i + 1].flatten(1, 2)
        attention = output.of(slice(i, i + 1)).attention
        image = ImageTokens(
            hidden=hidden,
            grid=tuple(packed.shape[1:3]),
            project=base.multi_modal_projector,
            layers=tower.config.num_hidden_layers,
            valid=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
            attention={j: replace(a, pool=partial(_block_mean, block)) for j, a in attention.items()},
        )
        yield image, plan


def qwen_pictures(base: nn.Module, inputs: dict[str, Any], compressor: Compressor) -> Iterator[Picture]:
    """Qwen2-VL and 2.5-VL: pictures of any size, thinned after the tower's own merging of 2x2 patches."""
    tower, grids = base.visual, inputs["image_grid_thw"].tolist()
    needs = compressor.needs(len(tower.blocks))
    if needs != Needs():
        raise VistokError(
            f"{compressor.name} reads attention that the Qwen-VL tower, which has no CLS token, does not offer: "
            "use divprune, tome, uniform or random."
        )
    merge = tower.spatial_merge_size
    output = tower(inputs["pixel_values"].type(tower.dtype), grid_thw=inputs["image_grid_thw"], return_dict=True)
    lengths = [t * h * w // merge**2 for t, h, w in grids]
    for features, (t, h, w) in zip(output.pooler_output.split(lengths), grids, strict=True):
        hidden = features[None]
        image = ImageTokens(
            hidden=hidden,
            grid=(t * h // merge, w // merge),
            project=nn.Identity(),
            layers=len(tower.blocks),
            valid=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
        )
        yield image, single_view_plan(hidden.shape[1])


FAMILIES: dict[str, Callable[[nn.Module, dict[str, Any], Compressor], Iterator[Picture]]] = {
    "llava": llava_pictures,
    "llava_next": llava_next_pictures,
    "internvl": internvl_pictures,
    "qwen2_vl": qwen_pictures,
    "qwen2_5_vl": qwen_pictures,
}
M_ROPE = ("qwen2_vl", "qwen2_5_vl")  # families with three-dimensional positions
FLAT_FEATURES = ("internvl",)  # families whose forward takes one tensor of features, not one a picture
