"""Families of transformers models that read pictures, found by ``config.model_type``.

``FAMILIES[model_type]`` is the class of :class:`~vistok.models.families.family.Family` that describes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vistok.errors import VistokError
from vistok.registry import Registry

if TYPE_CHECKING:
    from vistok.models.families.family import Family

_HERE = "vistok.models.families"
FAMILIES = Registry(
    "family of transformers models",
    {
        "llava": f"{_HERE}.llava:Llava",
        "llava_next": f"{_HERE}.llava_next:LlavaNext",
        "llava_onevision": f"{_HERE}.llava_onevision:LlavaOnevision",
        "internvl": f"{_HERE}.internvl:InternVL",
        "qwen2_vl": f"{_HERE}.qwen2_vl:Qwen2VL",
        "qwen2_5_vl": f"{_HERE}.qwen2_vl:Qwen25VL",
        "qwen3_vl": f"{_HERE}.qwen2_vl:Qwen3VL",
        "gemma3": f"{_HERE}.gemma3:Gemma3",
        "paligemma": f"{_HERE}.gemma3:PaliGemma",
        "idefics3": f"{_HERE}.idefics3:Idefics3",
        "smolvlm": f"{_HERE}.idefics3:Idefics3",
        "mistral3": f"{_HERE}.mistral3:Mistral3",
        "aya_vision": f"{_HERE}.aya_vision:AyaVision",
        "cohere2_vision": f"{_HERE}.cohere2_vision:Cohere2Vision",
        "glm4v": f"{_HERE}.glm4v:Glm4v",
        "lfm2_vl": f"{_HERE}.lfm2_vl:Lfm2Vl",
        "perception_lm": f"{_HERE}.perception_lm:PerceptionLM",
        "fast_vlm": f"{_HERE}.fast_vlm:FastVlm",
    },
    "vistok.families",
)


def family_of(model: nn.Module) -> Family:
    """Returns the family of a model.

    Raises:
        VistokError: the model is of none; the sentence lists those that are known.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise VistokError(f"'{kind}' is no known family of multimodal models: known are {', '.join(FAMILIES)}.")
    return FAMILIES[kind]()
