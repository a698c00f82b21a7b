"""Image generators of transformers that draw codes one behind the other: Janus, Emu3, Chameleon and its descendants."""

from __future__ import annotations

from vistok.models.codes.generator import CodeGenerator, PromptCondition
from vistok.models.codes.plan import PicturePlan

__all__ = ["CodeGenerator", "PicturePlan", "PromptCondition"]
