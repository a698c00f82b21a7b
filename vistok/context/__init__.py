"""How a decoder of transformers keeps and reads its cache: policies behind one call, and edits of cached text.

``with vistok.context.apply(model, vistok.context.TidalDecode(top_k=256)): model.generate(**inputs)``. ``POLICIES`` maps
the name that commands use to the class. Names are imported on first use.
"""

from __future__ import annotations

from vistok.registry import lazy_attributes

_HERE = "vistok.context"
_NAMES = {
    "Context": f"{_HERE}.attachment",
    "ContextCache": f"{_HERE}.cache",
    "Coprocessor": f"{_HERE}.augmentation",
    "CoreContext": f"{_HERE}.core",
    "Edit": f"{_HERE}.edits",
    "Edited": f"{_HERE}.edits",
    "Full": f"{_HERE}.interface",
    "HeavyHitters": f"{_HERE}.lococo",
    "LoCoCo": f"{_HERE}.lococo",
    "Mixing": f"{_HERE}.lococo",
    "POLICIES": f"{_HERE}.registry",
    "Policy": f"{_HERE}.interface",
    "Report": f"{_HERE}.interface",
    "SnapKV": f"{_HERE}.snapkv",
    "StreamingLLM": f"{_HERE}.streaming",
    "TidalDecode": f"{_HERE}.tidal",
    "TokenSelect": f"{_HERE}.tokenselect",
    "active": f"{_HERE}.attachment",
    "apply": f"{_HERE}.attachment",
    "edit": f"{_HERE}.edits",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_attributes(__name__, _NAMES)
