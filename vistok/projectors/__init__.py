"""Visual-token compressors for multimodal language models, and the one call that puts them into a Hugging Face model.

One small file a method, usable on bare tensors, and :func:`vistok.compress` for models. ``COMPRESSORS`` maps the name
that the command line uses to the class. Names are imported on first use.
"""

from __future__ import annotations

from vistok.registry import lazy_attributes

_APPLY, _METHODS, _TOKENS = "vistok.projectors.apply", "vistok.projectors.methods", "vistok.models.families.tokens"
_NAMES = {
    "CDPruner": f"{_METHODS}.cdpruner",
    "COMPRESSORS": "vistok.projectors.registry",
    "Canvas": _TOKENS,
    "Compression": f"{_APPLY}.compress",
    "Compressor": "vistok.projectors.interface",
    "CorrelationGuided": f"{_METHODS}.correlation",
    "Coverage": f"{_METHODS}.coverage",
    "Dart": f"{_METHODS}.dart",
    "DivPrune": f"{_METHODS}.divprune",
    "DyCoke": f"{_METHODS}.dycoke",
    "FAMILIES": "vistok.models.families",
    "FasterVLM": f"{_METHODS}.fastervlm",
    "FastV": f"{_METHODS}.fastv",
    "FastVID": f"{_METHODS}.fastvid",
    "GlobalCom2": f"{_METHODS}.globalcom2",
    "HoliTom": f"{_METHODS}.holitom",
    "HoloV": f"{_METHODS}.holov",
    "ImageTokens": _TOKENS,
    "Kept": _TOKENS,
    "LayerAttention": "vistok.models.families.attention",
    "LayerCompressor": "vistok.projectors.interface",
    "LayerView": "vistok.projectors.interface",
    "Needs": _TOKENS,
    "PMod": f"{_METHODS}.pmod",
    "Plan": "vistok.models.families.plan",
    "PruMerge": f"{_METHODS}.prumerge",
    "PruneVid": f"{_METHODS}.prunevid",
    "PyramidDrop": f"{_METHODS}.pyramiddrop",
    "Random": f"{_METHODS}.baselines",
    "Report": f"{_APPLY}.report",
    "SparseVLM": f"{_METHODS}.sparsevlm",
    "ToMe": f"{_METHODS}.tome",
    "TokenPacker": "vistok.projectors.learned.tokenpacker",
    "Uniform": f"{_METHODS}.baselines",
    "VisPruner": f"{_METHODS}.vispruner",
    "VisionZip": f"{_METHODS}.visionzip",
    "VtcCls": f"{_METHODS}.vtc_cls",
    "compress": f"{_APPLY}.compress",
    "concentric": f"{_APPLY}.concentric",
    "compressor_class": "vistok.projectors.registry",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_attributes(__name__, _NAMES)
