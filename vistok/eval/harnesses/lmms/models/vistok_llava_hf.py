"""lmms-eval's ``llava_hf`` with a compressor."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.chat.llava_hf import LlavaHf

from vistok.eval.harnesses.lmms.adapter import LLAVA_CHAT, Compressed


class VistokLlavaHf(Compressed, LlavaHf):
    """LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision of transformers on fewer visual tokens."""

    is_simple = True  # see Compressed

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self._image_processor.chat_template is None:
            self._image_processor.chat_template = LLAVA_CHAT
