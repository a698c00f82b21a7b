"""Prompts of a comparison of text decoders: held-out modules of the standard library, or Spec-Bench's questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.data.text import modules
from vistok.errors import VistokError
from vistok.files import read_json_lines
from vistok.ops.noise import counter_uniform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("code", "documentation")


@dataclass(frozen=True)
class Text:
    """A prompt.

    Attributes:
        kind: what the figures are grouped by.
        ids: its tokens, int64 [1, L].
    """

    kind: str
    ids: Tensor


def held_out_prompts(tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int = 0) -> list[Text]:
    """Returns passages of held-out modules of the standard library, ``count`` of each of KINDS.

    Raises:
        VistokError: not enough modules are that long.
    """
    found = []
    for number, kind in enumerate(KINDS):
        texts = []
        for module in modules("held-out"):
            passage = module.source if kind == "code" else module.documentation
            ids = tokenizer(passage, verbose=False).input_ids  # no word about texts longer than the model reads
            if len(ids) > length + 16:
                texts.append(ids)
        if not texts:
            raise VistokError(f"no held-out module has {length + 16} tokens: ask for shorter prompts.")
        for i in range(count):
            ids = texts[i % len(texts)]
            start = int(float(counter_uniform(seed, number, i)) * (len(ids) - length))
            found.append(Text(kind, torch.tensor([ids[start : start + length]])))
    return found


def spec_bench_prompts(path: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Text]:
    """Returns the first turns of a Spec-Bench question file (``question.jsonl``), ``count`` of each category.

    Raises:
        VistokError: the file is not there or is no such file.
    """
    taken: dict[str, list[Text]] = {}
    for number, question in read_json_lines(path, "Spec-Bench question file"):
        category, turns = question.get("category"), question.get("turns")
        if not isinstance(category, str) or not isinstance(turns, list) or not isinstance((turns or [None])[0], str):
            raise VistokError(
                f"line {number} of '{path}' is no question of Spec-Bench: each line needs 'category' and 'turns'."
            )
        if not turns[0].strip():
            raise VistokError(f"line {number} of '{path}' asks nothing: its first turn is empty.")
        texts = taken.setdefault(category, [])
        if len(texts) < count:
            texts.append(Text(category, _chat(tokenizer, turns[0])))
    return [text for texts in taken.values() for text in texts]


def _chat(tokenizer: PreTrainedTokenizerBase, turn: str) -> Tensor:
    if tokenizer.chat_template is None:
        return tokenizer(turn, return_tensors="pt").input_ids
    messages = [{"role": "user", "content": turn}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
