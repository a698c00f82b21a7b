"""The shape of an EAGLE-3 head, and how published ones are read: SafeAILab's, SpecForge's, ``speculators``'.

Flags that are read wrongly load strictly and draft badly, so a flag that nobody here knows is refused when it is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vistok.errors import VistokError
from vistok.models.heads.drafter import DrafterConfig

FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm")
# True flags that do not change the forward, or say what the weights show anyway.
HARMLESS = {
    *FLAGS,
    "norm_output",
    "use_cache",
    "return_dict",
    "embed_requires_grad",
    "tie_word_embeddings",
    "attention_bias",
    "bias",
    "qkv_bias",
    "qk_norm",
    "use_return_dict",
    "is_decoder",
}
LLAMAS = ("llama", "qwen3")
ROTATIONS = ("default", "linear", "dynamic", "yarn", "llama3")
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Eagle3Config(DrafterConfig):
    """Shape of an EAGLE-3 drafter.

    Attributes:
        draft_vocab_size: tokens that it may draft; 0 for all.
        target_hidden_size: width of the target's states where it is another one; 0 for the same.
        num_hidden_layers, qk_norm: its layers, and whether they norm queries and keys.
        norm_before_residual: the residual of the first layer is the normed feature.
        norm_before_fc, fc_norm: the target's states are normed together, or each, before ``fc``.
        norm_output: what a drafted step reads is normed.
        aux_layers: which hidden states of the target are read, as transformers counts them; those that enter the layers
            2, n // 2 and n - 3 of n if empty.
    """

    draft_vocab_size: int = 0
    target_hidden_size: int = 0
    num_hidden_layers: int = 1
    qk_norm: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    aux_layers: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "aux_layers", tuple(self.aux_layers))

    @property
    def states(self) -> int:
        """How many states of the target are read."""
        return len(self.aux_layers) or 3


def published_config(entries: Mapping[str, Any], state: Mapping[str, Tensor]) -> Eagle3Config:
    """Returns the shape of an EAGLE-3 head.

    Args:
        entries: of its ``config.json``.
        state: its weights, under SafeAILab's names; they decide about biases, layers and norms of queries and keys.

    Raises:
        VistokError: a head of another kind, or a flag that is not understood.
    """
    nested = entries.get("transformer_layer_config")
    if nested is not None or "speculators_model_type" in entries or "speculators_config" in entries:
        _check_kind(entries, nested or {})
    shape = dict(nested or entries)
    for part in (entries, shape):
        for name, value in part.items():
            if value is True and name not in HARMLESS:
                raise VistokError(f"the head's configuration sets {name}, which is not understood: take another head.")
    ours = nested is not None or "aux_layers" in entries  # where norm_output says what a drafted step reads
    if not ours and entries.get("norm_output") is False:  # SpecForge's flag of this name is the output's norm
        raise VistokError("the head has no norm before its output layer (norm_output false): take another head.")
    if "fc.weight" not in state or "lm_head.weight" not in state:
        raise VistokError("these are not the weights of an EAGLE-3 head: fc.weight and lm_head.weight are missing.")
    aux = _aux_layers(entries, nested is not None)
    layers = {name.split(".")[1] for name in state if name.startswith("layers.")}
    drafted, states = len(state["lm_head.weight"]), len(aux) or 3
    vocabulary = shape.get("vocab_size")
    if vocabulary is None:
        raise VistokError("the head's configuration does not say vocab_size: name the folder of a drafter.")
    wanted = entries.get("draft_vocab_size") or entries.get("truncated_vocab_size") or vocabulary
    if wanted != drafted:
        raise VistokError(f"the head's configuration says {wanted} drafted tokens, but its output layer has {drafted}.")
    try:
        return Eagle3Config(
            vocab_size=vocabulary,
            **{name: shape[name] for name in SHAPE if shape.get(name) is not None},
            **_rotations(shape),
            qkv_bias="midlayer.self_attn.q_proj.bias" in state,
            draft_vocab_size=0 if drafted == vocabulary else drafted,
            target_hidden_size=state["fc.weight"].shape[1] // states,
            num_hidden_layers=1 + len(layers),
            qk_norm="midlayer.self_attn.q_norm.weight" in state,
            norm_output=ours and bool(entries.get("norm_output")),
            aux_layers=aux,
            **{name: bool(entries.get(name)) for name in FLAGS},
        )
    except TypeError:
        raise VistokError("the head's configuration does not say its shape: name the folder of a drafter.") from None


def _check_kind(entries: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    kind = entries.get("speculators_model_type") or (entries.get("speculators_config") or {}).get("algorithm")
    if kind != "eagle3":
        raise VistokError(f"the head is of the kind '{kind}', which is not EAGLE-3: take one of the kind 'eagle3'.")
    if layer.get("model_type", "llama") not in LLAMAS:
        raise VistokError(
            f"the head's layers are those of '{layer['model_type']}': known are those of {' and '.join(LLAMAS)}."
        )


def _aux_layers(entries: Mapping[str, Any], nested: bool) -> tuple[int, ...]:
    """Which of the target's hidden states are read, as transformers counts them; empty for the customary three.

    ``speculators`` names the layer that a state enters, SpecForge the layer that it leaves.
    """
    own = entries.get("aux_layers")
    if own:
        return tuple(own)
    if nested:
        return tuple(entries.get("eagle_aux_hidden_state_layer_ids") or ())
    leaving = (entries.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids") or ()
    return tuple(layer + 1 for layer in leaving)


def _rotations(shape: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of the two ways in which transformers writes them."""
    options = dict(shape.get("rope_parameters") or shape.get("rope_scaling") or {})
    theta = options.pop("rope_theta", None) or shape.get("rope_theta") or 10000.0
    kind = options.get("rope_type") or options.get("type") or "default"
    if kind not in ROTATIONS or "mrope_section" in options:
        raise VistokError(
            f"the head rotates by '{'mrope' if 'mrope_section' in options else kind}': known are "
            f"{', '.join(ROTATIONS)}."
        )
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else options | {"rope_type": kind}}
