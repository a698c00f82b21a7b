"""How LlamaGens load: the generator with the image tokenizer that made its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vistok.errors import VistokError
from vistok.models.interface import LoadRequest
from vistok.models.llamagen.model import LlamaGen
from vistok.zoo import resolve

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


class LlamaGenFamily:
    """How LlamaGens load: the generator with the image tokenizer that made its codes."""

    kind: ClassVar[type[LlamaGen]] = LlamaGen
    name = "llamagen"
    interface = "autoregressive"
    plain = "ar"
    options = frozenset({"size", "preset", "tokens", "text_encoder", "compile"})

    def load(self, request: LoadRequest) -> tuple[LlamaGen, Tokenizer]:
        """Returns the generator and its tokenizer; see ``vistok.models.interface.GeneratorFamily``."""
        from vistok.tokenizers.load import load_tokenizer
        from vistok.tokenizers.vq import VQTokenizer

        source = request.tokenizer_source
        path = resolve(source)
        tokenizer = load_tokenizer(str(source)).tokenizer if path.is_dir() else VQTokenizer.from_pretrained(path)
        can = tokenizer.capabilities
        overrides = {} if request.size is None else {"block_size": _block_size(request.size, can.multiple)}
        model = self.kind.from_pretrained(request.source, request.preset, **overrides)
        own = model.tokens
        if request.size is not None and own.length != overrides["block_size"]:
            raise request.wrong_size(can.image_size or own.line * can.multiple)
        if (own.size, own.layout) != (can.codebook_size, can.layout):
            raise VistokError(
                f"the generator knows {own.size} codes in a {own.layout} but the tokenizer has {can.codebook_size} in "
                f"a {can.layout}: name the tokenizer that belongs to it with --tokenizer."
            )
        if request.tokens is not None:
            model.stop_at(request.tokens)
        return model, tokenizer


def _block_size(size: int, downsample: int) -> int:
    if size < downsample or size % downsample:
        raise VistokError(f"--size {size} is not a multiple of {downsample}, the pixels of one token.")
    return (size // downsample) ** 2


FAMILY = LlamaGenFamily()
