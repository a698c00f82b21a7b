"""lmms-eval's ``qwen2_5_vl`` with a compressor."""

from __future__ import annotations

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL

from vistok.eval.harnesses.lmms.adapter import Compressed


class VistokQwen2_5_VL(Compressed, Qwen2_5_VL):
    """Qwen2.5-VL on fewer visual tokens."""

    is_simple = True  # see Compressed
