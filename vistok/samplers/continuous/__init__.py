"""Continuous tokens: MAR sampling, its head's solvers, continuous speculative decoding, and xAR's entities."""

from vistok.samplers.continuous.cspd import ContinuousSpeculative
from vistok.samplers.continuous.mar import MaskedAutoregressive
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.continuous.xar import NextEntity

__all__ = ["ContinuousSpeculative", "ContinuousStats", "MaskedAutoregressive", "NextEntity"]
