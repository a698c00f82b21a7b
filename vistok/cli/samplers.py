"""``vistok samplers``: every sampler with its options."""

from __future__ import annotations

from vistok.cli.output import Json, check_outputs, output_json


def samplers(
    json: Json = None,
) -> None:
    """List every sampler, its options and their defaults, as `vistok sample --sampler NAME:option=value` takes them.

    Example: `vistok samplers`
    """
    from vistok.samplers import SAMPLERS, sampler_options

    check_outputs(json)
    found = [(name, sampler, sampler_options(name)) for name, sampler in SAMPLERS.usable().items()]
    rows = [
        {
            "name": name,
            "interface": sampler.interface,
            "description": _summary(sampler),
            "options": {key: option.default for key, option in options.items()},
        }
        for name, sampler, options in found
    ]
    if output_json(rows, json):
        return
    for name, sampler, options in found:
        print(f"{name}  (draws from {sampler.interface} generators)\n    {_summary(sampler)}")
        if options:
            print("    " + ":".join([name, *(f"{key}={option.default}" for key, option in options.items())]))


def _summary(sampler: type) -> str:
    """The first paragraph of its docstring."""
    return " ".join((sampler.__doc__ or "").split("\n\n")[0].split())
