"""Gemma 3 and PaliGemma: square pictures through SigLIP, one tensor of features, types of tokens that open the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.models.families.encoded import EncodedFamily, Tile
from vistok.models.families.family import square


class Gemma3(EncodedFamily):
    """The family ``gemma3``; crops of pan and scan are pictures of their own."""

    features = "flat"
    causal = False

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        pixels = inputs["pixel_values"]
        tokens = base.get_image_features(pixels, return_dict=True).pooler_output
        return [Tile(view, square(len(view))) for view in tokens]


class PaliGemma(Gemma3):
    """The family ``paligemma``, version 1 and 2; the second caps its logits."""

    def head(self, model: nn.Module, states: Tensor) -> Tensor:
        logits = super().head(model, states)
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)
