"""Visual-token compressors for multimodal language models, and the one call that puts them into a Hugging Face model.

One small file a method, usable on bare tensors, and :func:`vistok.compress` for models. ``COMPRESSORS`` maps the name
that the command line uses to the class.
"""

from __future__ import annotations

from vistok.errors import unknown_name
from vistok.projectors.apply.compress import Compression, compress
from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs
from vistok.projectors.learned.tokenpacker import TokenPacker
from vistok.projectors.methods.baselines import Random, Uniform
from vistok.projectors.methods.correlation import CorrelationGuided
from vistok.projectors.methods.coverage import Coverage
from vistok.projectors.methods.divprune import DivPrune
from vistok.projectors.methods.fastv import FastV
from vistok.projectors.methods.globalcom2 import GlobalCom2
from vistok.projectors.methods.prumerge import PruMerge
from vistok.projectors.methods.tome import ToMe
from vistok.projectors.methods.visionzip import VisionZip
from vistok.projectors.methods.vtc_cls import VtcCls

COMPRESSORS: dict[str, type] = {
    cls.name: cls
    for cls in (
        VtcCls,
        GlobalCom2,
        VisionZip,
        DivPrune,
        PruMerge,
        ToMe,
        FastV,
        Coverage,
        CorrelationGuided,
        TokenPacker,
        Uniform,
        Random,
    )
}


def compressor_class(name: str) -> type:
    """The compressor of a name.

    Raises:
        VistokError: no compressor is called so; the sentence names the nearest.
    """
    if name not in COMPRESSORS:
        raise unknown_name("compression method", name, list(COMPRESSORS))
    return COMPRESSORS[name]


__all__ = [
    "COMPRESSORS",
    "Compression",
    "Compressor",
    "CorrelationGuided",
    "Coverage",
    "DivPrune",
    "FastV",
    "GlobalCom2",
    "ImageTokens",
    "Kept",
    "Needs",
    "PruMerge",
    "Random",
    "ToMe",
    "TokenPacker",
    "Uniform",
    "VisionZip",
    "VtcCls",
    "compress",
    "compressor_class",
]
