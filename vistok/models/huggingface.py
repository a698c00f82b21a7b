"""What differs between releases of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def given_cache(arguments: Mapping[str, Any]) -> Any | None:
    """The KV cache among the keyword arguments of a forward: ``cache``, or ``past_key_values`` before 5.24."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache
