"""Continuous tokens: MAR sampling, its head's solvers, and continuous speculative decoding."""

from vistok.samplers.continuous.cspd import ContinuousSpeculative
from vistok.samplers.continuous.mar import MaskedAutoregressive
from vistok.samplers.continuous.stats import ContinuousStats

__all__ = ["ContinuousSpeculative", "ContinuousStats", "MaskedAutoregressive"]
