"""How MARs load: the generator, by its averaged weights, with its autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vistok.models.interface import LoadRequest
from vistok.models.latents import load_autoencoder
from vistok.models.mar.model import MAR

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


class MARFamily:
    """See ``vistok.models.interface.GeneratorFamily``."""

    name = "mar"
    interface = "mar"
    plain = "mar"
    options = frozenset({"size", "preset"})

    def load(self, request: LoadRequest) -> tuple[MAR, Tokenizer]:
        """Returns the generator and its autoencoder."""
        model = MAR.from_pretrained(request.source, request.preset, prefer_ema=True)
        return model, load_autoencoder(request, model.config)


FAMILY = MARFamily()
