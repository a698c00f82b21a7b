"""Samplers by name, with their options: ``sjd:window=16:init=repeat-up``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vistok.registry import Option, Registry

if TYPE_CHECKING:
    from vistok.samplers.interface import Sampler

_BUILDERS = "vistok.samplers.text_drafters"
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
        "xar": "vistok.samplers.continuous.xar:NextEntity",
        "masked": "vistok.samplers.masked:Masked",
    },
    "vistok.samplers",
    needs=("interface", "honours", "prepare", "sample"),
)

TEXT_DRAFTERS = Registry(
    "text drafter",
    {
        "lookup": f"{_BUILDERS}:lookup",
        "recycling": f"{_BUILDERS}:recycling",
        "draft": f"{_BUILDERS}:draft_model",
        "eagle": f"{_BUILDERS}:eagle",
        "ppd": f"{_BUILDERS}:prompt_tokens",
        "hidden-transfer": f"{_BUILDERS}:hidden_transfer",
        "clover": f"{_BUILDERS}:clover",
        "s2d": f"{_BUILDERS}:sorted_draft",
        "lexical-units": f"{_BUILDERS}:lexical_units",
        "medusa": f"{_BUILDERS}:medusa",
        "aded": f"{_BUILDERS}:aded",
        "rasd": f"{_BUILDERS}:rasd",
    },
    "vistok.text_drafters",
)


def sampler_options(name: str) -> dict[str, Option]:
    """Returns the options of a sampler that a text can give, by name.

    Raises:
        VistokError: no sampler has this name.
    """
    return SAMPLERS.options(name)


def parse_sampler(spec: str, own: Mapping[str, Any] | None = None) -> Sampler:
    """Returns the sampler of a text.

    Args:
        spec: a name, and options behind colons, such as ``sjd:window=16:init=repeat-up``.
        own: options that suit a model; those of them that the sampler has take the place of its defaults.

    Raises:
        VistokError: an unknown name or option (the sentence names the nearest), or a value of another type.
    """
    return SAMPLERS.build(spec, own)
