"""Samplers by name, with their options: ``sjd:window=16:init=repeat-up``."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from vistok.errors import VistokError, unknown_name
from vistok.registry import Registry

if typing.TYPE_CHECKING:
    from vistok.samplers.interface import Sampler

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
SCALARS = (bool, int, float, str)  # in the order in which a text is tried


class Option(NamedTuple):
    """An option of a sampler that a text can give.

    Attributes:
        types: what it may be, of ``SCALARS``.
        default: None where there is none.
    """

    types: tuple[type, ...]
    default: Any

    def parse(self, text: str) -> Any:
        """Returns the value that a text stands for.

        Raises:
            ValueError: it is none of the types.
        """
        for kind in self.types:
            if kind is bool and text in ("true", "false"):
                return text == "true"
            try:
                if kind is not bool:
                    return kind(text)
            except ValueError:
                continue
        raise ValueError(text)


def sampler_options(name: str) -> dict[str, Option]:
    """Returns the options of a sampler that a text can give, by name.

    Raises:
        VistokError: no sampler has this name.
    """
    cls = SAMPLERS[name]
    hints = typing.get_type_hints(cls)
    found = {}
    for field in fields(cls):
        hint = hints[field.name]
        union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = tuple(kind for kind in SCALARS if kind in union)
        if field.init and kinds:
            found[field.name] = Option(kinds, None if field.default is MISSING else field.default)
    return found


def parse_sampler(spec: str, own: Mapping[str, Any] | None = None) -> Sampler:
    """Returns the sampler of a text.

    Args:
        spec: a name, and options behind colons, such as ``sjd:window=16:init=repeat-up``.
        own: options that suit a model; those of them that the sampler has take the place of its defaults.

    Raises:
        VistokError: an unknown name or option (the sentence names the nearest), or a value of another type.
    """
    name, *rest = re.split(r":(?=[\w-]+=)", spec)
    if ":" in name:
        raise VistokError(f"'{spec}' does not name a sampler: options are written as in sjd:window=16:init=repeat-up.")
    known = sampler_options(name)
    options = {key: value for key, value in (own or {}).items() if key in known}
    for entry in rest:
        key, _, text = entry.partition("=")
        key = key.replace("-", "_")
        if key not in known:
            if not known:
                raise VistokError(f"the sampler '{name}' has no options: leave {key} out.")
            raise unknown_name(f"option of the sampler '{name}'", key, list(known))
        try:
            options[key] = known[key].parse(text)
        except ValueError:
            kinds = " or ".join({bool: "true or false", str: "a text"}.get(t, "a number") for t in known[key].types)
            raise VistokError(f"{key} of the sampler '{name}' is {kinds}, not '{text}'.") from None
    return SAMPLERS[name](**options)
