"""Families of generators by name."""

from __future__ import annotations

from vistok.registry import Registry

GENERATORS = Registry(
    "generator family",
    {
        "llamagen": "vistok.models.llamagen:FAMILY",
        "controlar": "vistok.models.controlar:FAMILY",
        "mar": "vistok.models.mar:FAMILY",
        "xar": "vistok.models.xar:FAMILY",
        "enat": "vistok.models.enat:FAMILY",
        "maskgit": "vistok.models.maskgit:FAMILY",
    },
    "vistok.generators",
)
