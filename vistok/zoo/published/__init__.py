"""Cards of published checkpoints: a module for each family, found by scanning this package.

Nothing is fetched unless a user names the hub id.
"""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module

from vistok.zoo.model_card import ModelCard


@functools.cache
def published_cards() -> tuple[ModelCard, ...]:
    """Cards of all families; a module of this package holds those of one in ``PUBLISHED``."""
    modules = (import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(card for module in modules for card in module.PUBLISHED)
