"""LoRA factors in models of transformers, as PEFT keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vistok.errors import VistokError

EVERY_MAP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Entries of ``model.lora``.

    Attributes:
        rank, alpha: of the factors.
        modules: names of the linear maps of the language model that get them.
    """

    rank: int = 8
    alpha: int = 16
    modules: tuple[str, ...] = ("q_proj", "v_proj")


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """Returns the frozen model with LoRA factors in its language model, as PEFT wraps it; it has them itself too.

    Raises:
        VistokError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise VistokError("training adapters needs PEFT: pip install peft.") from error
    within = r".*language_model\." if hasattr(model.config, "vision_config") else ""
    targets = rf"{within}.*\.({'|'.join(lora.modules)})"
    return get_peft_model(model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets))
