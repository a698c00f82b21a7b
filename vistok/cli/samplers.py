"""``vistok samplers``: every sampler with its options."""

from __future__ import annotations

from typing import Annotated

import typer


def samplers(
    json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List every sampler, its options and their defaults, as `vistok sample --sampler NAME:option=value` takes them.

    Example: `vistok samplers`
    """
    from vistok.samplers import SAMPLERS, sampler_options

    found = [(name, sampler, sampler_options(name)) for name, sampler in SAMPLERS.items()]
    if json:
        import json as encoder

        rows = [
            {
                "name": name,
                "draws from": sampler.interface,
                "description": _summary(sampler),
                "options": {key: option.default for key, option in options.items()},
            }
            for name, sampler, options in found
        ]
        print(encoder.dumps(rows, indent=2))
        return
    for name, sampler, options in found:
        print(f"{name}  (draws from {sampler.interface} generators)\n    {_summary(sampler)}")
        if options:
            print("    " + ":".join([name, *(f"{key}={option.default}" for key, option in options.items())]))


def _summary(sampler: type) -> str:
    """The first sentence of its docstring."""
    text = " ".join((sampler.__doc__ or "").split("\n\n")[0].split())
    return text
