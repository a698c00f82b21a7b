"""lmms-eval's ``qwen3_vl`` with a compressor."""

from __future__ import annotations

from lmms_eval.models.chat.qwen3_vl import Qwen3_VL

from vistok.eval.harnesses.lmms.adapter import Compressed


class VistokQwen3_VL(Compressed, Qwen3_VL):
    """Qwen3-VL on fewer visual tokens."""

    is_simple = True  # see Compressed
