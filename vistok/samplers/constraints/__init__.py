"""Constraints: which tokens may follow a text."""

from vistok.samplers.constraints.constrained import Constrained
from vistok.samplers.constraints.interface import Constraint

__all__ = ["Constrained", "Constraint"]
