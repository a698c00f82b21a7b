"""How image generators of transformers load: network, prompts and tokenizer, from a folder or a hub id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.codes.chameleon import ChameleonGenerator, begin_of_picture
from vistok.models.codes.emu3 import Emu3Generator
from vistok.models.codes.generator import CodeGenerator, PromptCondition
from vistok.models.codes.janus import JanusGenerator
from vistok.models.codes.janus_vq import TOKENIZER_PREFIX, janus_vq_state
from vistok.models.codes.seed_llama import BEGIN, SeedLlamaGenerator
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.seed import Seed
from vistok.tokenizers.vq import VQTokenizer
from vistok.zoo import card_of_folder, resolve
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.pretrained import WEIGHTS_FILE
from vistok.zoo.registry import is_embedded, local_path
from vistok.zoo.transformers import load_causal_lm, load_config, load_image_text, load_processor

if TYPE_CHECKING:
    from vistok.models.interface import LoadRequest
    from vistok.tokenizers.interface import Tokenizer

EMU3_SIDE, LUMINA_SIDE = 720, 768  # pixels where no size is given
PIXELS = {"emu3": 8, "lumina": 16}  # of a code along a side


class PromptReader(nn.Module):
    """Texts to prompts in tokens.

    Args:
        tokenizer: of the text.
        read: texts to what a processor returns.
    """

    def __init__(self, tokenizer: Any, read: Callable[[list[str]], Any]):
        super().__init__()
        self.tokenizer, self._read = tokenizer, read

    def forward(self, texts: Sequence[str]) -> PromptCondition:
        """Prompts of pictures, padded on the left."""
        found = self._read(list(texts))
        return PromptCondition(torch.as_tensor(found["input_ids"]), torch.as_tensor(found["attention_mask"]))

    @property
    def known_words(self) -> list[str] | None:
        """The words of a word-level tokenizer, sorted; None for tokenizers that can spell any word."""
        from vistok.models.text_encoder import known_words

        return known_words(self.tokenizer)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The distinct words that a word-level tokenizer does not know, in order."""
        from vistok.models.text_encoder import unknown_words

        return unknown_words(self.tokenizer, texts)


class NetworkTokenizer(nn.Module):
    """The tokenizer of pictures within a generator's own network."""

    def __init__(self, generator: CodeGenerator, pixels: int):
        super().__init__()
        self.generator, self.pixels = generator, pixels

    @property
    def capabilities(self) -> Capabilities:
        """A grid of codes."""
        side = self.generator.plan.columns * self.pixels
        return Capabilities(self.generator.plan.codes, "grid", multiple=self.pixels, image_size=side)

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, H, W], about -1 to 1."""
        return self.generator.pictures(tokens)


class CodeFamily:
    """Base: a family of ``vistok.models.interface.GeneratorFamily``."""

    name: str = ""
    interface = "autoregressive"
    plain = "ar"
    options: frozenset[str] = frozenset()

    def load(self, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer | None]:
        """Returns the generator, with the reader of its prompts, and its tokenizer; see ``GeneratorFamily``."""
        network, processor = load_image_text(request.source)
        return self.of(network, processor, request)

    def of(self, network: nn.Module, processor: Any, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer | None]:
        """Returns the generator of a loaded network and its tokenizer."""
        raise NotImplementedError


class JanusFamily(CodeFamily):
    """Janus, Janus-Pro, and the embedded one, which shares a tokenizer that its card names."""

    name = "janus"

    def load(self, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer]:
        """Returns the generator and its tokenizer."""
        if not _local(request.source) or _tokenizer_of(resolve(request.source)) is None:
            return super().load(request)
        return self.of(load_janus(request.source), load_processor(request.source), request)

    def of(self, network: nn.Module, processor: Any, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer]:
        generator = JanusGenerator.square(network)

        def read(texts: list[str]) -> Any:
            if processor.chat_template is not None:
                said = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
                texts = processor.apply_chat_template(said, add_generation_prompt=True)
            return processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")

        generator.reader = PromptReader(processor.tokenizer, read)
        vision = network.config.vision_config
        return generator, NetworkTokenizer(generator, vision.image_size // generator.plan.columns)


class Emu3Family(CodeFamily):
    """Emu3: ``size`` is the side of its square pictures in pixels."""

    name, options = "emu3", frozenset({"size"})

    def of(self, network: nn.Module, processor: Any, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer]:
        side = request.size or EMU3_SIDE
        rows = _codes(side, PIXELS["emu3"])
        generator = Emu3Generator(network, Emu3Generator.plan_of(network, rows, rows))

        def read(texts: list[str]) -> Any:
            options = {"ratio": "1:1", "image_area": side**2, "padding": True, "padding_side": "left"}
            return processor(text=texts, return_for_image_generation=True, return_tensors="pt", **options)

        generator.reader = PromptReader(processor.tokenizer, read)
        return generator, NetworkTokenizer(generator, PIXELS["emu3"])


class ChameleonFamily(CodeFamily):
    """Anole; with ``preset`` "lumina-mgpt" the layout of Lumina-mGPT, whose pictures have a ``size``."""

    name, options = "chameleon", frozenset({"size", "preset"})

    def of(self, network: nn.Module, processor: Any, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer | None]:
        if request.preset not in (None, "anole", "lumina-mgpt"):
            raise VistokError(f"--preset of a Chameleon is anole or lumina-mgpt, not '{request.preset}'.")
        if request.preset == "lumina-mgpt":
            rows = _codes(request.size or LUMINA_SIDE, PIXELS["lumina"])
            generator = ChameleonGenerator.lumina(network, rows, rows)
            opening = ChameleonGenerator.opening(network, rows, rows)
        else:
            generator, opening = ChameleonGenerator.anole(network), [begin_of_picture(network)]
            side = generator.plan.columns * PIXELS["lumina"]
            if request.size not in (None, side):
                raise request.wrong_size(side)
        words = processor.tokenizer

        def read(texts: list[str]) -> Any:
            rows = [words(text)["input_ids"] + opening for text in texts]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
            real = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
            return {"input_ids": ids, "attention_mask": real.long()}

        generator.reader = PromptReader(words, read)
        if request.tokenizer is None:
            return generator, None
        from vistok.tokenizers.taming import TamingVQGAN

        tokenizer = TamingVQGAN.from_checkpoint(request.tokenizer)
        if tokenizer.config.codebook_size != generator.plan.codes:
            raise VistokError(
                f"the generator knows {generator.plan.codes} codes but the tokenizer has "
                f"{tokenizer.config.codebook_size}: name the tokenizer that belongs to it with --tokenizer."
            )
        return generator, tokenizer


class SeedLlamaFamily(CodeFamily):
    """SEED-LLaMA, which draws the tokens of a SEED: that of its card, or one that is named."""

    name = "seed-llama"

    def load(self, request: LoadRequest) -> tuple[CodeGenerator, Tokenizer]:
        """Returns the generator and its tokenizer."""
        network, vocabulary = load_causal_lm(request.source)
        seed = load_tokenizer(str(request.tokenizer_source)).tokenizer
        if not isinstance(seed, Seed):
            raise VistokError(
                f"a SEED-LLaMA draws tokens of a SEED, and '{request.tokenizer_source}' is none: name one."
            )
        generator = SeedLlamaGenerator(network, vocabulary, seed)

        def read(texts: list[str]) -> Any:
            return vocabulary([text + BEGIN for text in texts], padding=True, return_tensors="pt")

        generator.reader = PromptReader(vocabulary, read)
        return generator, seed


def load_janus(source: str | Path) -> nn.Module:
    """Returns a network in float32 that was exported without its tokenizer of pictures, with the one its card names.

    Raises:
        VistokError: the folder's card names none, or the weights are of another shape.
    """
    from transformers import JanusForConditionalGeneration

    folder = resolve(source)
    tokenizer = _tokenizer_of(folder)
    if tokenizer is None:
        raise VistokError(f"'{source}' is no Janus of vistok: its card names no tokenizer.")
    network = JanusForConditionalGeneration(load_config(source, "Janus")).float()
    shared = janus_vq_state(VQTokenizer.from_pretrained(tokenizer))
    state = read_state_dict(folder / WEIGHTS_FILE) | {TOKENIZER_PREFIX + k: v for k, v in shared.items()}
    state.setdefault("lm_head.weight", state.get("model.language_model.embed_tokens.weight"))
    load_strict(network, {key: value.float() for key, value in state.items()}, "Janus")
    network.generation_config = type(network.generation_config).from_pretrained(folder)
    return network.eval().requires_grad_(False)


def _tokenizer_of(folder: Path) -> str | None:
    card = card_of_folder(folder)
    return None if card is None else card.parts.get("tokenizer")


def _codes(side: int, pixels: int) -> int:
    if side < pixels or side % pixels:
        raise VistokError(f"--size {side} is not a multiple of {pixels}, the pixels of one token.")
    return side // pixels


def _local(source: str | Path) -> bool:
    return is_embedded(source) or local_path(source) is not None


JANUS, EMU3, CHAMELEON, SEED_LLAMA = JanusFamily(), Emu3Family(), ChameleonFamily(), SeedLlamaFamily()
