"""Visual tokens: image tokenizers, visual-token compressors for multimodal LLMs, fast autoregressive image samplers.

``vistok.pipeline("llamagen")`` paints prompts; see the README. Submodules load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vistok import moved

if TYPE_CHECKING:
    from vistok.pipelines import pipeline
    from vistok.projectors import compress
    from vistok.samplers import accelerate

moved.install()

__version__ = "0.1.0"
__all__ = ["__version__", "accelerate", "compress", "pipeline"]

_LAZY = {"accelerate": "vistok.samplers", "compress": "vistok.projectors", "pipeline": "vistok.pipelines"}
_MODULES = ("context", "data", "eval", "models", "ops", "projectors", "samplers", "tokenizers", "train", "zoo")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"vistok.{name}")
    raise AttributeError(f"module 'vistok' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
