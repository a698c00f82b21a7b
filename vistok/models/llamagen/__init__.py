"""LlamaGen (Sun et al., arXiv 2406.06525): its configuration, layers, network, and how it loads."""

from vistok.models.llamagen.config import PRESETS, LlamaGenConfig
from vistok.models.llamagen.family import FAMILY, LlamaGenFamily
from vistok.models.llamagen.layers import RMSNorm
from vistok.models.llamagen.model import DecodeState, LlamaGen

__all__ = ["FAMILY", "PRESETS", "DecodeState", "LlamaGen", "LlamaGenConfig", "LlamaGenFamily", "RMSNorm"]
