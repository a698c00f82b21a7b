"""Policies by the name that commands use."""

from __future__ import annotations

from vistok.registry import Registry

_HERE = "vistok.context"
POLICIES = Registry(
    "context policy",
    {
        "full": f"{_HERE}.interface:Full",
        "tidal": f"{_HERE}.tidal:TidalDecode",
        "tokenselect": f"{_HERE}.tokenselect:TokenSelect",
        "core": f"{_HERE}.core:CoreContext",
        "lococo": f"{_HERE}.lococo:LoCoCo",
        "heavy-hitters": f"{_HERE}.lococo:HeavyHitters",
        "streaming": f"{_HERE}.streaming:StreamingLLM",
        "snapkv": f"{_HERE}.snapkv:SnapKV",
    },
    "vistok.policies",
    needs=("name", "keeps_all", "prepare", "reset", "reorder", "rows", "attend", "settings"),
)
