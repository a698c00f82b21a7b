"""What differs between releases of transformers: 5.24 renamed ``past_key_values``, of forwards and their outputs,
``cache``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def given_cache(arguments: Mapping[str, Any]) -> Any | None:
    """The KV cache among the keyword arguments of a forward, or in its output."""
    cache = arguments.get("cache")
    return cache if cache is not None else arguments.get("past_key_values")


def cache_argument(model: nn.Module) -> str:
    """Under which name a model's forward takes a KV cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
