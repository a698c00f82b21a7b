"""What turns a model of lmms-eval into one that runs on fewer visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vistok.errors import VistokError
from vistok.eval.answers.ask import build_compressor, parse_keep
from vistok.models.attach import Attachment
from vistok.projectors import compress
from vistok.zoo.registry import is_embedded, resolve

# LLaVA-1.5's chat as templates of processors write it: the picture is a part of its own in a message.
LLAVA_CHAT = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class Compressed:
    """Put before a model class of lmms-eval: the compressor is chosen by model arguments, the rest is lmms-eval's.

    Args:
        method: name of the compressor, or "none".
        keep: tokens of a view (64) or share of them (25% or 0.25); the method's own if None.
        positions: as in :func:`vistok.compress`.
        device: cuda where there is one if None.
        device_map: the device if empty, which transformers refuses.
        pretrained: folder or hub id, or an embedded model such as ``llava-mini``; lmms-eval's own if None.
        arguments: lmms-eval's own.
    """

    def __init__(
        self,
        method: str = "vtc-cls",
        keep: str | int | float | None = None,
        positions: str = "compact",
        device: str | None = None,
        device_map: str = "",
        pretrained: str | None = None,
        **arguments: Any,
    ) -> None:
        with _ending_the_run():
            share = None if keep is None else parse_keep(str(keep))
            compressor = None if method == "none" else build_compressor(method, share)
        if not device or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if pretrained is not None:
            arguments["pretrained"] = str(resolve(pretrained)) if is_embedded(pretrained) else pretrained
        super().__init__(device=device, device_map=device_map or device, **arguments)
        self.is_simple = False  # lmms-eval registers a plugin's class as a simple one, and asks the instance later
        if compressor is not None:
            with _ending_the_run():
                self.compression = compress(self.model, compressor, positions)
            _Strict(self.model)


@contextmanager
def _ending_the_run() -> Iterator[None]:
    """End the process where vistok refuses: lmms-eval logs an error, counts the answer as wrong and reports success."""
    try:
        yield
    except VistokError as error:
        raise SystemExit(f"vistok: {error}") from error


class _Strict(Attachment):
    """Lets no refusal of the compressor pass for an answer."""

    slot = "strictness"

    def generate(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _ending_the_run():
            return plain(*args, **kwargs)
