"""Causal LMs and their tokenizers, by the names that the rest of the package resolves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vistok.errors import VistokError
from vistok.progress import quiet_transformers
from vistok.zoo import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_causal_lm(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM, ready to decode, and its tokenizer.

    Args:
        name: an embedded model such as ``text-mini``, a folder, or a hub id.

    Raises:
        VistokError: the name leads nowhere, or to no causal LM.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise VistokError(f"'{name}' is no causal LM that transformers can load: {reason}") from None
    return model.to(device).eval().requires_grad_(False), tokenizer
