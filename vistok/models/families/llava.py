"""LLaVA-1.5: one view a picture, cut out of its middle, and a projector that works token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from vistok.errors import VistokError
from vistok.models.families.family import Ask, Family, Picture, TowerOutput, run_tower, square
from vistok.models.families.plan import Plan, single_view_plan
from vistok.models.families.tokens import ImageTokens


class Llava(Family):
    """The family ``llava``."""

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        base = model.base_model
        layer, strategy = feature_settings(base, inputs)
        if inputs.get("image_sizes") is not None:
            raise VistokError("LLaVA models with pictures of free size (Pixtral) are not supported yet.")
        output = run_tower(base.vision_tower, inputs["pixel_values"], layer, ask(tower_layers(base)))
        plan = single_view_plan(output.features.shape[1] - output.has_cls)
        for i in range(len(output.features)):
            yield described(base, output.of(slice(i, i + 1)), strategy, plan)


def tower_layers(base: nn.Module) -> int:
    """Returns the number of layers of the vision tower."""
    return base.vision_tower.config.num_hidden_layers


def feature_settings(base: nn.Module, inputs: dict[str, Any]) -> tuple[int | list[int], str]:
    """Returns the feature layer and strategy of a call, or of the configuration."""
    layer = inputs.get("vision_feature_layer")
    strategy = inputs.get("vision_feature_select_strategy")
    config = base.config
    layer = config.vision_feature_layer if layer is None else layer
    return layer, config.vision_feature_select_strategy if strategy is None else strategy


def described(base: nn.Module, output: TowerOutput, strategy: str, plan: Plan, **layout: Any) -> Picture:
    """Returns one picture of a model whose projector works token by token, with its plan.

    Raises:
        VistokError: the model sends CLS to its language model.
    """
    features = output.features
    if output.has_cls and strategy != "default":
        raise VistokError("this model sends the CLS token of each view to its language model: not supported yet.")
    cls, hidden = (features[:, :1], features[:, 1:]) if output.has_cls else (None, features)
    image = ImageTokens(
        hidden=hidden,
        cls=cls,
        grid=square(hidden.shape[1]),
        project=base.multi_modal_projector,
        layers=tower_layers(base),
        valid=plan.valid(*hidden.shape[:2]).to(hidden.device),
        attention=output.attention,
        states=output.states,
        **layout,
    )
    return image, plan
