"""lmms-eval's ``llava_hf`` with a compressor, chosen by model arguments."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vistok.eval.answers.ask import build_compressor, parse_keep
from vistok.projectors import compress

_FOLDER = "lmms_eval.models.simple"  # older versions have the models in lmms_eval.models itself
LlavaHf = import_module(f"{_FOLDER if find_spec(_FOLDER) else 'lmms_eval.models'}.llava_hf").LlavaHf


class VistokLlavaHf(LlavaHf):
    """LLaVA-1.5 or LLaVA-NeXT of transformers on fewer visual tokens.

    Args:
        method: name of the compressor.
        keep: tokens of a view (64) or share of them (25% or 0.25); the method's own if None.
        positions: as in :func:`vistok.compress`.
        arguments: lmms-eval's own for ``llava_hf``.
    """

    def __init__(
        self,
        method: str = "vtc-cls",
        keep: str | int | float | None = None,
        positions: str = "compact",
        **arguments: Any,
    ) -> None:
        compressor = build_compressor(method, None if keep is None else parse_keep(str(keep)))
        super().__init__(**arguments)
        self.compression = compress(self.model, compressor, positions)
