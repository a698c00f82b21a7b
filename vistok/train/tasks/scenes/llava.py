"""The LLaVA that tasks about scenes train: an untrained one in the words of the toy world, or an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vistok.data.scenes.vqa import BEGIN, END, IMAGE, PAD, token_ids, vocabulary
from vistok.projectors.learned.croc import restore_normalization
from vistok.train.options import check_entries
from vistok.zoo.registry import resolve


def build_llava(vision: Mapping[str, Any], text: Mapping[str, Any]) -> nn.Module:
    """Returns an untrained ``LlavaForConditionalGeneration``.

    Args:
        vision, text: entries of CLIPVisionConfig and of LlamaConfig, as a recipe's ``model`` gives them.

    Raises:
        VistokError: an entry is unknown to its configuration.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    check_entries(vision, CLIPVisionConfig().to_dict(), "model.vision")
    check_entries(text, LlamaConfig().to_dict(), "model.text")
    ids = token_ids()
    tower = CLIPVisionConfig(**vision)
    special = {"pad_token_id": ids[PAD], "bos_token_id": ids[BEGIN], "eos_token_id": ids[END]}
    config = LlavaConfig(
        vision_config=tower,
        text_config=LlamaConfig(vocab_size=len(vocabulary()), **special, **text),
        image_token_index=ids[IMAGE],
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
    )
    return LlavaForConditionalGeneration(config)


def load_llava(name: str) -> nn.Module:
    """Returns the LLaVA that a recipe starts from, in float32: an embedded one, or the export of an earlier run.

    Raises:
        VistokError: the name leads nowhere.
    """
    from transformers import LlavaForConditionalGeneration

    llava = LlavaForConditionalGeneration.from_pretrained(resolve(name), dtype=torch.float32)
    restore_normalization(llava)
    return llava
