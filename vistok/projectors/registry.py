"""The table of compressors: the name that the command line uses leads to the class."""

from __future__ import annotations

from vistok.registry import Registry

_METHODS, _LEARNED = "vistok.projectors.methods", "vistok.projectors.learned"
COMPRESSORS = Registry(
    "compression method",
    {
        "vtc-cls": f"{_METHODS}.vtc_cls:VtcCls",
        "globalcom2": f"{_METHODS}.globalcom2:GlobalCom2",
        "visionzip": f"{_METHODS}.visionzip:VisionZip",
        "divprune": f"{_METHODS}.divprune:DivPrune",
        "prumerge": f"{_METHODS}.prumerge:PruMerge",
        "tome": f"{_METHODS}.tome:ToMe",
        "fastv": f"{_METHODS}.fastv:FastV",
        "sparsevlm": f"{_METHODS}.sparsevlm:SparseVLM",
        "pyramiddrop": f"{_METHODS}.pyramiddrop:PyramidDrop",
        "pmod": f"{_METHODS}.pmod:PMod",
        "dart": f"{_METHODS}.dart:Dart",
        "fastervlm": f"{_METHODS}.fastervlm:FasterVLM",
        "vispruner": f"{_METHODS}.vispruner:VisPruner",
        "cdpruner": f"{_METHODS}.cdpruner:CDPruner",
        "holov": f"{_METHODS}.holov:HoloV",
        "dycoke": f"{_METHODS}.dycoke:DyCoke",
        "fastvid": f"{_METHODS}.fastvid:FastVID",
        "prunevid": f"{_METHODS}.prunevid:PruneVid",
        "holitom": f"{_METHODS}.holitom:HoliTom",
        "coverage": f"{_METHODS}.coverage:Coverage",
        "correlation": f"{_METHODS}.correlation:CorrelationGuided",
        "tokenpacker": f"{_LEARNED}.tokenpacker:TokenPacker",
        "uniform": f"{_METHODS}.baselines:Uniform",
        "random": f"{_METHODS}.baselines:Random",
    },
    "vistok.compressors",
    needs=("trained", "temporal", "select"),
)


def compressor_class(name: str) -> type:
    """Returns the compressor class of a name.

    Raises:
        VistokError: no compressor is called so; the sentence names the nearest.
    """
    return COMPRESSORS[name]
