"""Captions to features: the T5 encoder path of LlamaGen (arXiv 2406.06525).

A caption is cleaned, tokenised to a fixed length, encoded by the encoder half of a T5, and the features of its valid
tokens are moved to the end of the sequence, so that the image tokens follow the last word without a gap. Any T5
encoder of transformers serves; the published text models use flan-t5-xl with 120 tokens. The embedded mini model
uses a small T5 encoder with a word-level tokenizer, trained together with the image model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistok.data.captions import clean_caption
from vistok.errors import VistokError
from vistok.models.word_encoder import WordNetwork, WordTokenizer, load_word_encoder, word_encoder_config
from vistok.progress import quiet_transformers
from vistok.zoo.registry import resolve
from vistok.zoo.transformers import load_model, load_text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5EncoderModel

CAPTION_LENGTH = 120
SHOWN = 60  # characters of a caption that a warning repeats
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in the vocabulary of T5


def left_pad(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid rows of each sequence to its end, in order, and set all others to zero.

    Args:
        features: caption features.
        mask: nonzero where a row is valid.

    Shape:
        features [B, L, D], mask [B, L] -> features [B, L, D], mask [B, L], dtypes kept.
    """
    order = mask.bool().int().argsort(dim=1, stable=True)
    mask = mask.gather(1, order)
    features = features.gather(1, order.unsqueeze(-1).expand_as(features))
    return features * mask.unsqueeze(-1).to(features.dtype), mask


class TextEncoder(nn.Module):
    """A T5 encoder with its tokenizer: captions in, left-padded features and their mask out.

    Args:
        encoder: the encoder half of a T5.
        tokenizer: its tokenizer.
        max_length: number of tokens that every caption is padded or cut to.
        clean_captions: whether captions pass through the cleaner of the published models first.
    """

    def __init__(
        self,
        encoder: T5EncoderModel | WordNetwork,
        tokenizer: PreTrainedTokenizerBase | WordTokenizer,
        max_length: int = CAPTION_LENGTH,
        clean_captions: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.clean_captions = clean_captions

    @property
    def dim(self) -> int:
        """Size of the features."""
        return self.encoder.config.d_model

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions; of a caption that is longer than ``max_length`` the end is cut off, with a warning.

        Shape:
            B captions -> features [B, max_length, dim] in the encoder's dtype, mask [B, max_length] bool.
        """
        for caption, length in self.cut_captions(captions):
            warnings.warn(
                f"the prompt '{shorten(caption)}' has {length} tokens, of which the text encoder reads the first "
                f"{self.max_length}: its end is cut off; shorten it",
                stacklevel=1,  # frames of torch lie between the caller and here
            )
        tokens = self.tokenizer(
            self._cleaned(captions),
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        mask = tokens["attention_mask"]
        features = self.encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return left_pad(features, mask.bool())

    def cut_captions(self, captions: Sequence[str]) -> list[tuple[str, int]]:
        """Returns the captions whose end is cut off, as the encoder reads them, each with its number of tokens."""
        captions = self._cleaned(captions)
        lengths = [len(ids) for ids in self.tokenizer(captions, verbose=False)["input_ids"]]
        return [each for each in zip(captions, lengths, strict=True) if each[1] > self.max_length]

    def _cleaned(self, captions: Sequence[str]) -> list[str]:
        return [clean_caption(caption) for caption in captions] if self.clean_captions else list(captions)

    @property
    def known_words(self) -> list[str] | None:
        """The words of a word-level tokenizer, sorted; None for tokenizers that can spell any word."""
        return known_words(self.tokenizer)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """The distinct words of the captions that a word-level tokenizer does not know, in order."""
        return unknown_words(self.tokenizer, captions)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype | None = None) -> TextEncoder:
        """Load an encoder and its tokenizer in the layout of transformers.

        Args:
            name: an embedded model, a folder, or a hub id such as ``google/flan-t5-xl``.
            dtype: of the weights; by default the one they were saved in.

        Raises:
            VistokError: the name leads nowhere, or what is there is not a complete T5 encoder.
        """
        from transformers import T5EncoderModel

        encoder = load_model(name, T5EncoderModel, "T5 text encoder", dtype=dtype).requires_grad_(True)
        config = encoder.config
        length = getattr(config, "caption_length", CAPTION_LENGTH)
        return cls(encoder, load_text_tokenizer(name), length, getattr(config, "clean_captions", True))

    def save_pretrained(self, path: str | Path) -> None:
        """Write encoder, configuration and tokenizer to a folder that ``from_pretrained`` reads."""
        if isinstance(self.encoder, WordNetwork):
            self.encoder.save_pretrained(path)
        else:
            self.encoder.config.caption_length = self.max_length
            self.encoder.config.clean_captions = self.clean_captions
            with quiet_transformers():
                self.encoder.save_pretrained(path)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)  # slow tokenizers have none
        if backend is not None:
            backend.no_truncation()  # what the last call asked for is no part of it
            backend.no_padding()
        self.tokenizer.save_pretrained(path)

    @classmethod
    def build(
        cls,
        words: Sequence[str],
        d_model: int,
        num_layers: int,
        num_heads: int,
        d_ff: int,
        max_length: int,
        **config: Any,
    ) -> TextEncoder:
        """A new, untrained encoder over a closed vocabulary; its captions are not cleaned.

        Args:
            words: the vocabulary, in the order of the token ids.
            d_model, num_layers, num_heads, d_ff: sizes of the encoder.
            max_length: caption length in tokens, the end token included.
            config: further entries of T5Config, such as ``dropout_rate``.
        """
        from transformers import T5Config, T5EncoderModel

        tokenizer = word_level_tokenizer(words)
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=d_model,
            d_kv=d_model // num_heads,
            d_ff=d_ff,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            **config,
        )
        return cls(T5EncoderModel(config), tokenizer, max_length, clean_captions=False)


def encoder_folder(name: str | Path) -> Path:
    """Returns where the encoder lies that a name stands for: a generator's own, or the one that is named itself.

    Raises:
        VistokError: the name leads nowhere.
    """
    folder = resolve(name)
    own = folder / "text_encoder"
    return own if own.is_dir() else folder


def load_text_encoder(name: str | Path) -> TextEncoder:
    """Load an encoder for reading captions alone, in float32; an embedded one without importing transformers.

    Raises:
        VistokError: see ``TextEncoder.from_pretrained``.
    """
    config = word_encoder_config(name)
    if config is None:
        return TextEncoder.from_pretrained(name, dtype=torch.float32).eval()
    return TextEncoder(*load_word_encoder(name, config), config.caption_length, config.clean_captions).eval()


def word_level_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word or punctuation mark, lower-cased, and the special tokens of T5.

    Raises:
        VistokError: a word that the tokenizer would split, so that its token could never occur.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((PAD, EOS, UNK, *words)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK)
    for word in words:
        if _split(tokenizer, word) != [word]:
            raise VistokError(f"'{word}' is not one lower-case word, so it cannot be in a word-level vocabulary.")
    return tokenizer


def shorten(caption: str) -> str:
    """Returns a caption for a sentence, of which a long one is shown by its start."""
    return caption if len(caption) <= SHOWN else f"{caption[:SHOWN]}..."


def known_words(tokenizer: PreTrainedTokenizerBase | WordTokenizer) -> list[str] | None:
    """Returns the words of a word-level tokenizer, sorted; None for tokenizers that can spell any word."""
    if not _is_word_level(tokenizer):
        return None
    return sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


def unknown_words(tokenizer: PreTrainedTokenizerBase | WordTokenizer, captions: Sequence[str]) -> list[str]:
    """Returns the distinct words of the captions that a word-level tokenizer does not know, in order."""
    if not _is_word_level(tokenizer):
        return []
    words = (word for caption in captions for word in _split(tokenizer, caption))
    vocabulary = tokenizer.get_vocab()
    return list(dict.fromkeys(word for word in words if word not in vocabulary))


def _split(tokenizer: PreTrainedTokenizerFast, caption: str) -> list[str]:
    backend = tokenizer.backend_tokenizer
    normal = caption if backend.normalizer is None else backend.normalizer.normalize_str(caption)
    if backend.pre_tokenizer is None:
        return [normal]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def _is_word_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    from tokenizers.models import WordLevel

    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, WordLevel)
