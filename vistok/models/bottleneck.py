"""Bottleneck adapters as Pink (arXiv 2310.00582) puts them into LLaMA and CLIP: between a norm and what reads it.

``a(x) = x + B act(A x + a) + b`` on the normed input of the attention, and as an option on that of the MLP. They are no
LoRA: they stand before the layer, with biases, and act on it as a whole. Published key layout
(``layers.i.adapter_attn.tune_adapter_a.weight``), since they become modules of the layers that they serve.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vistok.errors import VistokError

# By the layer's class-independent attributes: the norm, and the name of the adapter behind it.
_BEFORE_ATTENTION = ("input_layernorm", "layer_norm1")
_BEFORE_MLP = ("post_attention_layernorm", "layer_norm2")


class BottleneckAdapter(nn.Module):
    """Adds to its input what a narrow layer makes of it; nothing at first.

    Args:
        width: of the input.
        bottleneck: of the narrow layer.
        non_linear: SiLU between the two maps, else nothing.
        dropout: in training.
    """

    def __init__(self, width: int, bottleneck: int = 8, non_linear: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.tune_adapter_a = nn.Linear(width, bottleneck)
        self.tune_adapter_b = nn.Linear(bottleneck, width)
        self.activate = nn.SiLU() if non_linear else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.tune_adapter_a.weight)
        for tensor in (self.tune_adapter_a.bias, self.tune_adapter_b.weight, self.tune_adapter_b.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activate(self.tune_adapter_a(x.to(self.tune_adapter_a.weight.dtype)))
        return x + self.tune_adapter_b(self.dropout(inner)).to(x.dtype)


def add_bottlenecks(
    model: nn.Module,
    bottleneck: int = 8,
    non_linear: bool = False,
    mlp: bool = False,
    depth: int | None = None,
    dropout: float = 0.1,
) -> list[nn.Parameter]:
    """Put adapters into every layer of a LLaMA- or CLIP-like model and freeze everything else of it.

    Args:
        model: its layers are the modules with a norm before the attention.
        bottleneck, non_linear, dropout: see BottleneckAdapter.
        mlp: before the MLP too.
        depth: only into the first so many layers; of CLIP those up to the selected one.

    Returns:
        What is trained.

    Raises:
        VistokError: the model has no such layers, or has adapters already.
    """
    layers = list(_layers(model))[:depth]
    if not layers:
        raise VistokError(
            f"{type(model).__name__} has no layers with a norm before the attention to put adapters into."
        )
    model.requires_grad_(False)
    added = []
    for layer in layers:
        places = {"adapter_attn": _BEFORE_ATTENTION, **({"adapter_mlp": _BEFORE_MLP} if mlp else {})}
        for name, norms in places.items():
            norm = next(getattr(layer, norm) for norm in norms if hasattr(layer, norm))
            if hasattr(layer, name):
                raise VistokError("this model has bottleneck adapters already: load them into it instead.")
            adapter = BottleneckAdapter(norm.weight.shape[0], bottleneck, non_linear, dropout).to(norm.weight.device)
            layer.add_module(name, adapter)
            norm.register_forward_hook(_through(layer, name))
            added.extend(adapter.parameters())
    return added


def bottleneck_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors of a model under their published names."""
    return {
        key: value for key, value in model.state_dict().items() if ".adapter_attn." in key or ".adapter_mlp." in key
    }


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if any(hasattr(module, norm) for norm in _BEFORE_ATTENTION) and hasattr(module, "self_attn"):
            yield module


def _through(layer: nn.Module, name: str):
    def hook(norm: nn.Module, args: tuple[torch.Tensor, ...], out: Tensor) -> Tensor:
        return layer.get_submodule(name)(out)

    return hook


def load_bottlenecks(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put adapters into a model as the tensors of ``bottleneck_state`` tell, and load them; nothing if there are none.

    Args:
        model: the one that the state was taken from, without adapters.
        state: named as in ``bottleneck_state``.
        where: they were read, for the sentence.

    Raises:
        VistokError: they belong to another model.
    """
    if not state:
        return
    downs = [value for key, value in state.items() if key.endswith("tune_adapter_a.weight")]
    add_bottlenecks(model, len(downs[0]) if downs else 8, mlp=any(".adapter_mlp." in key for key in state))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(key in bottleneck_state(model) for key in missing):
        raise VistokError(
            f"the adapters of '{where}' are not those of this model: name the model they were trained on."
        )
