"""A language model that another one is by little: LoRA factors, as PEFT writes them, beside a whole ``config.json``.

The folder holds no weights of its own. ``adapter_config.json`` names the model below, and the metadata of
``adapter_model.safetensors`` the SHA-256 of its weights: on others the factors mean nothing, and are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from vistok.errors import VistokError
from vistok.files import write_json
from vistok.zoo.model_card import sha256, weights_files
from vistok.zoo.pretrained import read_entries
from vistok.zoo.registry import resolve

CONFIG_FILE = "config.json"
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HASHES = "base_sha256"  # entry of the factors' metadata
# Entries of PEFT's that make of factors another sum, or more than one.
_NOT_MERGED = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
_PEFT_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def base_hashes(name: str) -> tuple[str, ...]:
    """Returns the SHA-256 of the weights files of a model, in the order of their names."""
    return tuple(sha256(path) for path in weights_files(resolve(name)))


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds LoRA factors and the configuration of a whole model, and no weights of one."""
    return all((folder / name).is_file() for name in (CONFIG_FILE, LORA_CONFIG, LORA_WEIGHTS))


def adapter_base(folder: Path) -> str:
    """Returns the name of the model below an adapter, from its configuration.

    Raises:
        VistokError: it names none.
    """
    base = read_entries(folder / LORA_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise VistokError(f"'{folder / LORA_CONFIG}' names no model below: set base_model_name_or_path.")
    return base


def save_lora(folder: Path, model: Any, base: str) -> None:
    """Writes the LoRA factors of a PEFT model, in bfloat16, in the two files that PEFT reads; the model stays as it is.

    Args:
        folder: where they go.
        model: as PEFT wraps it.
        base: name of the model below.
    """
    from peft import get_peft_model_state_dict

    from vistok.zoo.checkpoint import write_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    entries = {"peft_type": "LORA", "base_model_name_or_path": base, "r": config.r, "lora_alpha": config.lora_alpha}
    write_json(folder / LORA_CONFIG, entries | {"target_modules": config.target_modules, "task_type": "CAUSAL_LM"})
    state = {key: value.bfloat16() for key, value in get_peft_model_state_dict(model).items()}
    write_state_dict(folder / LORA_WEIGHTS, state, {HASHES: ",".join(base_hashes(base))})


def save_adapter(folder: Path, model: Any, base: str) -> None:
    """Writes what ``save_lora`` does and the configuration of the model that the factors make, which may be another."""
    save_lora(folder, model, base)
    model.config.save_pretrained(folder)


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Adds the factors of an adapter's folder to the weights of the model below.

    Raises:
        VistokError: they were trained on other weights, or fit no weight of the model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / LORA_WEIGHTS, "pt") as file:
            trained_on = (file.metadata() or {}).get(HASHES)
    except (SafetensorError, OSError) as error:
        raise VistokError(f"'{folder / LORA_WEIGHTS}' is truncated or no safetensors file: fetch it again.") from error
    base = adapter_base(folder)
    if trained_on is not None and trained_on != ",".join(base_hashes(base)):
        raise VistokError(
            f"'{folder}' was trained on other weights of '{base}' than these: train it again on them, or name the "
            f"model that it belongs to in its {LORA_CONFIG}."
        )
    merge_lora(model, folder)


def merge_lora(model: nn.Module, folder: Path) -> None:
    """Adds the LoRA factors in a folder, as ``save_lora`` or PEFT wrote them, to the weights that they belong to.

    Raises:
        VistokError: a factor belongs to no weight of the model, or has another shape; or the folder holds more than
            factors of one scale, such as DoRA's magnitudes or whole layers.
    """
    from vistok.zoo.checkpoint import read_state_dict

    scale, state = _scale(folder), read_state_dict(folder / LORA_WEIGHTS)
    if other := sorted(key for key in state if not key.endswith((_A, _B))):
        raise VistokError(
            f"'{folder / LORA_WEIGHTS}' holds {other[0]}, which is no LoRA factor of a linear map: merge the adapter "
            "with PEFT, and name the whole model."
        )
    for key, down in state.items():
        if not key.endswith(_A):
            continue
        name = key.removeprefix(_PEFT_PREFIX).removesuffix(_A)
        try:
            weight = model.get_parameter(f"{name}.weight")
            delta = state[key.removesuffix(_A) + _B].float() @ down.float()
            weight.data += (scale * delta).to(weight)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise VistokError(
                f"the adapter '{name}' fits no weight of this model: name the model it was trained on."
            ) from error


def _scale(folder: Path) -> float:
    """What the products of an adapter's factors are multiplied by.

    Raises:
        VistokError: its configuration tells none, or several, or asks for what is more than a sum.
    """
    path = folder / LORA_CONFIG
    config = read_entries(path)
    if asked := [entry for entry in _NOT_MERGED if config.get(entry)]:
        raise VistokError(
            f"'{path}' asks for {asked[0]}, which is not merged here: merge the adapter with PEFT, and name the whole "
            "model."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise VistokError(f"'{path}' tells no rank 'r' of 1 or more and no number 'lora_alpha': fetch it again.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
