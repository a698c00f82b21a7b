"""Gemma 3 and PaliGemma: square pictures through SigLIP, one tensor of features, types of tokens that open the mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.models.families.encoded import SquareTiles


class Gemma3(SquareTiles):
    """The family ``gemma3``; crops of pan and scan are pictures of their own."""

    causal = False


class PaliGemma(Gemma3):
    """The family ``paligemma``, version 1 and 2; the second caps its logits."""

    def head(self, model: nn.Module, states: Tensor) -> Tensor:
        logits = super().head(model, states)
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)
