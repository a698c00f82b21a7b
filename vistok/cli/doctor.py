"""``vistok doctor``."""

from __future__ import annotations

from vistok.cli.output import Json, check_outputs, output_json


def doctor(json: Json = None) -> None:
    """Tell what is installed, which devices and kernels there are, and what is slow and why.

    Example: `vistok doctor`
    """
    check_outputs(json)
    from vistok.doctor import examine

    found = examine()
    if output_json(found, json):
        return
    for title, entries in (("machine", found.machine), ("packages", found.packages), ("kernels", found.kernels)):
        print(title)
        for name, value in entries.items():
            print(f"  {name:14} {value}")
    print("advice" if found.advice else "advice\n  none: nothing is missing or slow that could be mended here")
    for line in found.advice:
        print(f"  - {line}")
