"""The families of code generators by ``config.model_type``."""

from __future__ import annotations

from vistok.registry import Registry

CODE_GENERATORS = Registry(
    "code generator",
    {
        "janus": "vistok.models.codes.janus:JanusGenerator",
        "emu3": "vistok.models.codes.emu3:Emu3Generator",
        "chameleon": "vistok.models.codes.chameleon:ChameleonGenerator",
    },
    "vistok.code_generators",
)
