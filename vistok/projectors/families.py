"""The families of transformers models that can be compressed: those of :mod:`vistok.models.families`."""

from vistok.models.families import FAMILIES, family_of

__all__ = ["FAMILIES", "family_of"]
