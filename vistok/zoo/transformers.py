"""The one loader of transformers models: by the names that the rest of the package resolves, strictly.

transformers fills what a checkpoint lacks with random numbers and says so in a log; here that is refused, as is a
folder of another architecture.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vistok.errors import VistokError
from vistok.progress import quiet_transformers
from vistok.runtime import resolve_device, resolve_dtype
from vistok.zoo.adapter import adapter_base, is_adapter, merge_adapter
from vistok.zoo.registry import hub_id, is_embedded, local_path, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

T = TypeVar("T")
_SHOWN = 3  # keys that an error names


def load_causal_lm(
    name: str | Path, device: torch.device | str | None = "cpu", dtype: torch.dtype | str | None = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a causal LM, ready to decode, and its tokenizer, which pads on the left; see ``load_model``."""
    from transformers import AutoModelForCausalLM

    model = load_model(name, AutoModelForCausalLM, "causal LM", device, dtype)
    return model, load_text_tokenizer(name, padding_side="left")


def load_image_text(
    name: str | Path, device: torch.device | str | None = "cpu", dtype: torch.dtype | str | None = "float32"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Returns a multimodal model that answers in text, and its processor; see ``load_model``.

    Raises:
        VistokError: see ``load_model``; or there is no processor beside the model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = load_model(name, AutoModelForImageTextToText, "multimodal model", device, dtype)
    processor = _read(AutoProcessor, name, "processor")
    if not hasattr(processor, "image_processor"):
        raise VistokError(f"'{name}' has no processor of pictures beside the model: copy its preprocessor_config.json.")
    return model, processor


def load_text_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """Returns the tokenizer that lies beside a model; options are those of transformers.

    Raises:
        VistokError: the name leads nowhere, or there is none.
    """
    from transformers import AutoTokenizer

    below, adapters = _below(name)
    if adapters:  # whose texts may be longer
        longest = getattr(load_config(name, "causal LM"), "max_position_embeddings", None)
        options = {"model_max_length": longest} | options
    tokenizer = _read(AutoTokenizer, below, "tokenizer", **options)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where there are no files
        raise VistokError(f"'{name}' has no tokenizer beside the model: copy its tokenizer.json, or vocabulary files.")
    return tokenizer


def load_processor(name: str | Path) -> ProcessorMixin:
    """Returns the processor that lies beside a model.

    Raises:
        VistokError: the name leads nowhere, or there is none.
    """
    from transformers import AutoProcessor

    return _read(AutoProcessor, name, "processor")


def load_model(
    name: str | Path,
    loader: type,
    what: str,
    device: torch.device | str | None = "cpu",
    dtype: torch.dtype | str | None = "float32",
    model_types: Collection[str] = (),
) -> Any:
    """Returns a transformers model in evaluation mode, without gradients: no weight missing, no shape another.

    Args:
        name: an embedded model such as ``text-mini``, a folder, or a hub id ``owner/name``; a folder may hold LoRA
            factors beside a whole configuration (:mod:`vistok.zoo.adapter`).
        loader: a class of transformers with ``from_pretrained``: an auto class such as ``AutoModelForCausalLM``, or a
            model's own such as ``CLIPModel``.
        what: what it should be, for sentences, e.g. ``"CLIP model"``.
        device: see ``resolve_device``.
        dtype: of the weights, see ``resolve_dtype``; the one they were saved in if None.
        model_types: for an auto class, the entries ``model_type`` of ``config.json`` that serve; all if empty.

    Raises:
        VistokError: the name leads nowhere, or to another architecture, or the weights are not complete.
    """
    place = resolve_device(device)
    number_format = "auto" if dtype is None else resolve_dtype(dtype)
    config = load_config(name, what)
    _check_architecture(name, config, loader, what, model_types)
    options = {"config": config, "dtype": number_format}
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # both are refused below, by name
    below, adapters = _below(name)
    with quiet_transformers():
        model, report = _read(loader, below, what, **options, **reporting)
    left_out = [key for key in report["unexpected_keys"] if key.endswith(".bias") and _has(model, key[:-4] + "weight")]
    faults = {
        "lacks": report["missing_keys"],
        "has other shapes of": [key for key, *_ in report["mismatched_keys"]],
        "has biases that its config.json leaves out:": left_out,
    }
    for verb, found in faults.items():
        if keys := sorted(found):
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            raise VistokError(
                f"the weights of '{name}' are not those of a whole {what}: it {verb} {', '.join(keys[:_SHOWN])}{more}; "
                "name complete weights."
            )
    model = model.eval().requires_grad_(False)
    for folder in reversed(adapters):
        merge_adapter(model, folder)
    return model.to(place)


def _below(name: str | Path) -> tuple[str | Path, list[Path]]:
    """The model whose weights are whole, and the folders of the adapters on it that make what a name leads to."""
    adapters: list[Path] = []
    while is_adapter(folder := Path(_source(name, "model"))):
        if folder in adapters:
            raise VistokError(f"the adapter in '{folder}' names itself as the model below: name another.")
        adapters.append(folder)
        name = adapter_base(folder)
    return name, adapters


def _has(model: Any, key: str) -> bool:
    return any(name == key or name.endswith(f".{key}") for name, _ in model.named_parameters())


def load_config(name: str | Path, what: str) -> Any:
    """Returns the transformers configuration of a model.

    Args:
        name: see ``load_model``.
        what: what the model should be, for the sentence.

    Raises:
        VistokError: the name leads nowhere, or to no model of transformers.
    """
    from transformers import AutoConfig

    return _read(AutoConfig, name, what)


def _check_architecture(name: str | Path, config: Any, loader: Any, what: str, model_types: Collection[str]) -> None:
    own = getattr(loader, "config_class", None)
    if model_types:
        fits = config.model_type in model_types
    elif own is not None:
        fits = config.model_type == own.model_type
    else:
        fits = type(config) in loader._model_mapping
    if not fits:
        built = ", ".join(getattr(config, "architectures", None) or (type(config).__name__,))
        raise VistokError(f"'{name}' holds a {config.model_type} ({built}), not a {what}: name a {what}.")


def _source(name: str | Path, what: str) -> str:
    """Where transformers finds a model: a folder on this machine, or the hub id itself, whose files it chooses."""
    if not is_embedded(name) and local_path(name) is None and (hub := hub_id(name)) is not None:
        if hub[1] is not None:
            raise VistokError(f"'{name}' names one file, but a {what} is a whole repository: name '{hub[0]}'.")
        return hub[0]
    path = resolve(name)
    if not path.is_dir():
        raise VistokError(f"'{name}' is a file: name the folder of a {what}, or a hub id such as 'owner/name'.")
    return str(path)


def _read(loader: Any, name: str | Path, what: str, **options: Any) -> Any:
    """``loader.from_pretrained`` without code from the repository; what goes wrong becomes one sentence."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    source = _source(name, what)
    failures = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, ArithmeticError)
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **options)
    except VistokError:
        raise
    except (*failures, SafetensorError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".") if lines else type(error).__name__
        raise VistokError(f"'{name}' holds no {what} that transformers can load ({reason}): name another.") from error
