"""FastVLM: square pictures through FastViT, whose last map of convolutions gives one token a place."""

from __future__ import annotations

from torch import nn

from vistok.models.families.gemma3 import Gemma3


class FastVlm(Gemma3):
    """``fast_vlm``; there is no attention among all tokens to read."""

    def modules(self, base: nn.Module) -> list[nn.Module]:
        return []
