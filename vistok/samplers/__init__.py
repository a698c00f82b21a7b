"""How tokens are drawn: one draft-verify loop, and the samplers that are made of it."""

from __future__ import annotations

from vistok.errors import unknown_name
from vistok.samplers.autoregressive import Autoregressive, Sampler
from vistok.samplers.continuous import ContinuousSpeculative, MaskedAutoregressive
from vistok.samplers.eagle import Eagle
from vistok.samplers.jacobi import SpeculativeJacobi
from vistok.samplers.lantern import Lantern
from vistok.samplers.law import Law
from vistok.samplers.noise import Noise
from vistok.samplers.stats import Stats
from vistok.samplers.target import ImageTarget
from vistok.samplers.text.generate import generate
from vistok.samplers.text.image import Recycling

SAMPLERS = {
    "ar": Autoregressive,
    "sjd": SpeculativeJacobi,
    "eagle": Eagle,
    "lantern": Lantern,
    "recycling": Recycling,
    "mar": MaskedAutoregressive,
    "cspd": ContinuousSpeculative,
}
CONTINUOUS = frozenset({"mar", "cspd"})  # those of continuous tokens; the others draw codes


def sampler_class(name: str) -> type[Sampler]:
    """The class of a sampler.

    Raises:
        VistokError: unknown name.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, list(SAMPLERS))
    return SAMPLERS[name]


__all__ = [
    "CONTINUOUS",
    "SAMPLERS",
    "Autoregressive",
    "ContinuousSpeculative",
    "Eagle",
    "ImageTarget",
    "Lantern",
    "Law",
    "MaskedAutoregressive",
    "Noise",
    "Recycling",
    "Sampler",
    "SpeculativeJacobi",
    "Stats",
    "generate",
    "sampler_class",
]
