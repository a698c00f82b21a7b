"""Cohere2 Vision (Command A Vision): square tiles through SigLIP, blocks of 2x2 patches as tokens."""

from __future__ import annotations

from vistok.models.families.gemma3 import Gemma3


class Cohere2Vision(Gemma3):
    """``cohere2_vision``; tiles are pictures of their own."""
