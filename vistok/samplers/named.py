"""Samplers by name."""

from __future__ import annotations

from typing import Any

from vistok.registry import Registry

SAMPLERS = Registry(
    "sampler",
    {
        "ar": "vistok.samplers.drafters.plain:Autoregressive",
        "sjd": "vistok.samplers.drafters.jacobi:SpeculativeJacobi",
        "eagle": "vistok.samplers.drafters.eagle:Eagle",
        "lantern": "vistok.samplers.verifiers.lantern:Lantern",
        "recycling": "vistok.samplers.drafters.recycling:Recycling",
        "mar": "vistok.samplers.continuous.mar:MaskedAutoregressive",
        "cspd": "vistok.samplers.continuous.cspd:ContinuousSpeculative",
    },
    "vistok.samplers",
)
CONTINUOUS = frozenset({"mar", "cspd"})  # those of continuous tokens; the others draw codes


def sampler_class(name: str) -> Any:
    """The class of a sampler.

    Raises:
        VistokError: unknown name.
    """
    return SAMPLERS[name]
