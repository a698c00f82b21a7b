"""A multimodal model that another one extends by little: new words, adapters, and heads of its own.

What grounding adds to a LLaVA is small beside it, so it is stored as a difference: ``extension.json`` names the model
below and the new words, ``adapter_model.safetensors`` holds LoRA factors as PEFT writes them, ``extension.safetensors``
the rows of the new words and whatever else was trained. The model below is told by the SHA-256 of its weights: on
another one the difference means nothing, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.files import write_json
from vistok.zoo.adapter import LORA_CONFIG, base_hashes, merge_lora
from vistok.zoo.registry import resolve

CONFIG_FILE, WEIGHTS_FILE = "extension.json", "extension.safetensors"
ROWS, HEAD_ROWS = "rows.embed", "rows.head"  # of the new words: into the language model, and out of it


@dataclass(frozen=True)
class Extension:
    """What extends a model.

    Attributes:
        kind: the system, e.g. ``read``.
        base: the model below: an embedded name, a folder or a hub id.
        base_sha256: of its weights files, in the order of their names.
        words: that the tokenizer gets, in this order.
        options: of the system.
    """

    kind: str
    base: str
    base_sha256: tuple[str, ...]
    words: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def is_extension(folder: Path) -> bool:
    """Returns whether a folder holds an extension and no model of its own."""
    return (folder / CONFIG_FILE).is_file()


def extend_vocabulary(model: Any, tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Gives a model and its tokenizer new words; their rows are the mean of the others at first.

    Args:
        model: a transformers model with a language model.
        tokenizer: its own.
        words: special tokens; those that it has already keep their number.

    Returns:
        The number of each.
    """
    tokenizer.add_tokens(list(words), special_tokens=True)
    old = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in {model.get_input_embeddings(), model.get_output_embeddings()}:
            with torch.no_grad():
                table.weight[old:] = table.weight[:old].mean(0)
    return tokenizer.convert_tokens_to_ids(list(words))


def word_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Returns the numbers of words that a tokenizer must know.

    Raises:
        VistokError: it lacks one.
    """
    ids = tokenizer.convert_tokens_to_ids(list(words))
    lacking = [word for word, number in zip(words, ids, strict=True) if number in (None, tokenizer.unk_token_id)]
    if lacking:
        raise VistokError(
            f"this tokenizer does not know {lacking[0]}: load the processor beside the model that was trained with it, "
            "or extend_vocabulary() both."
        )
    return ids


def save_extension(folder: Path, extension: Extension, state: Mapping[str, Tensor]) -> None:
    """Writes ``extension.json``, and ``extension.safetensors`` if there are tensors; ``save_lora`` writes adapters."""
    from vistok.zoo.checkpoint import write_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, asdict(extension))
    if state:
        write_state_dict(folder / WEIGHTS_FILE, state)


def read_extension(name: str | Path) -> tuple[Extension, Path]:
    """Returns the extension that a name leads to, and its folder.

    Raises:
        VistokError: there is none.
    """
    folder = resolve(name)
    try:
        entries = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        words, hashes = tuple(entries.pop("words")), tuple(entries.pop("base_sha256"))
        return Extension(words=words, base_sha256=hashes, **entries), folder
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VistokError(f"'{name}' holds no extension of a model: name a folder with {CONFIG_FILE}.") from error


def load_extended(
    name: str | Path, kind: str, device: Any = "cpu", dtype: Any = "float32"
) -> tuple[Any, Any, Extension, dict[str, Tensor]]:
    """Returns the model below with words and adapters in place, its processor, the extension, and tensors left over.

    Args:
        name: embedded model, folder or hub id of an extension.
        kind: the system that it must be of.
        device, dtype: see ``load_image_text``.

    Raises:
        VistokError: there is no such extension, it is of another system, or its model has other weights.
    """
    from vistok.zoo.checkpoint import read_state_dict
    from vistok.zoo.transformers import load_image_text

    extension, folder = read_extension(name)
    if extension.kind != kind:
        raise VistokError(f"'{name}' holds a '{extension.kind}' model, and a '{kind}' one is needed: name another.")
    if base_hashes(extension.base) != extension.base_sha256:
        raise VistokError(
            f"'{name}' was trained on other weights of '{extension.base}' than these: "
            f"train it again on them, or name the model that it extends in its {CONFIG_FILE}."
        )
    model, processor = load_image_text(extension.base, device, dtype)
    state = read_state_dict(folder / WEIGHTS_FILE) if (folder / WEIGHTS_FILE).is_file() else {}
    if extension.words:
        ids = extend_vocabulary(model, processor.tokenizer, extension.words)
        model.get_input_embeddings().weight.data[ids] = state.pop(ROWS).to(model.device, model.dtype)
        model.get_output_embeddings().weight.data[ids] = state.pop(HEAD_ROWS).to(model.device, model.dtype)
    if (folder / LORA_CONFIG).is_file():
        merge_lora(model, folder)
    return model.requires_grad_(False).eval(), processor, extension, state
