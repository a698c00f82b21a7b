"""Samplers of generators that predict masked codes."""

from vistok.samplers.masked.sampler import Masked
from vistok.samplers.masked.schedule import MaskPlan, MaskStep

__all__ = ["MaskPlan", "MaskStep", "Masked"]
