"""Which transformers models a policy can work on."""

from __future__ import annotations

from torch import nn

from vistok.errors import VistokError
from vistok.models.families import FAMILIES
from vistok.samplers.targets.cached_lm import layer_windows


def check_model(model: nn.Module) -> None:
    """Raises VistokError if a model is no decoder with full attention in all layers."""
    name, whole = type(model).__name__, getattr(model, "config", None)
    if whole is None or not hasattr(model, "get_decoder"):
        raise VistokError(f"{name} is no model of transformers: pass one that AutoModelForCausalLM loads.")
    config = whole.get_text_config(decoder=True)
    if getattr(whole, "is_encoder_decoder", False):
        raise VistokError(f"{name} is an encoder-decoder: a policy needs a decoder-only model.")
    windows = layer_windows(config)
    if windows is None or getattr(model, "_is_stateful", False):
        raise VistokError(
            f"{name} has layers that keep a state instead of keys and values (linear attention): a policy needs full "
            "attention in all layers."
        )
    if any(size is not None for _, size in windows.values()):
        raise VistokError(
            f"{name} has sliding windows, which forget keys by themselves: a policy needs full attention in all layers."
        )
    kind = getattr(whole, "model_type", "")
    if kind in FAMILIES and not FAMILIES[kind].causal:
        raise VistokError(f"{name} lets tokens of a picture see one another: a policy needs causal attention.")
    decoder = model.get_decoder()
    if not hasattr(decoder, "config"):  # ModernBertDecoder calls its output layer so
        raise VistokError(f"{name} names no text model: no policy can work in it.")
    if not getattr(model, "_supports_attention_backend", False) or not attentions(decoder):
        raise VistokError(f"{name} computes its attention itself: no policy can change it.")


def attentions(decoder: nn.Module) -> list[nn.Module]:
    """The attention modules of a text model that ask transformers' registry for their function."""
    return [module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "is_causal")]
