"""Families of generators by name."""

from __future__ import annotations

from vistok.registry import Registry

GENERATORS = Registry(
    "generator family",
    {
        "llamagen": "vistok.models.llamagen:FAMILY",
        "controlar": "vistok.models.controlar:FAMILY",
        "mar": "vistok.models.mar:FAMILY",
        "janus": "vistok.models.codes.load:JANUS",
        "emu3": "vistok.models.codes.load:EMU3",
        "chameleon": "vistok.models.codes.load:CHAMELEON",
        "seed-llama": "vistok.models.codes.load:SEED_LLAMA",
        "xar": "vistok.models.xar:FAMILY",
        "enat": "vistok.models.enat:FAMILY",
        "maskgit": "vistok.models.maskgit:FAMILY",
        "titok-maskgit": "vistok.models.titok_generator:FAMILY",
    },
    "vistok.generators",
    needs=("name", "interface", "plain", "options", "load"),
    made=False,
)
