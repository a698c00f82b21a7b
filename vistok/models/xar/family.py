"""How xARs load: the generator with its autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vistok.models.interface import LoadRequest
from vistok.models.latents import load_autoencoder
from vistok.models.xar.model import XAR

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


class XARFamily:
    """See ``vistok.models.interface.GeneratorFamily``."""

    name = "xar"
    interface = "entities"
    plain = "xar"
    options = frozenset({"size", "preset"})

    def load(self, request: LoadRequest) -> tuple[XAR, Tokenizer]:
        """Returns the generator and its autoencoder."""
        model = XAR.from_pretrained(request.source, request.preset, prefer_ema=True)
        return model, load_autoencoder(request, model.config)


FAMILY = XARFamily()
