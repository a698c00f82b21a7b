"""A tokenizer of the words of captions, for language models that learn them from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vistok.data.scenes.language import vocabulary
from vistok.models.text_encoder import PAD, UNK

BEGIN, END = "<s>", "</s>"


def word_tokenizer(special: Sequence[str] = (), **options: Any) -> Any:
    """Returns a tokenizer of transformers over whole words, which begins a text with ``<s>`` and pads on the left.

    Args:
        special: tokens that have a number before the words, behind padding, end, unknown word and begin.
        options: of PreTrainedTokenizerFast.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((PAD, END, UNK, BEGIN, *special, *vocabulary()))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, ids[BEGIN])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNK,
        padding_side="left",
        **options,
    )
