"""LoCoCo (arXiv 2406.05317): old rows of the cache are mixed into a fixed number of slots by learned convolutions.

Beside it stands the baseline that it is measured against, dropping all but heavy hitters (H2O, arXiv 2306.14048).
Weights have the published key names. Differs from the released code: heads may be grouped (the attention that a group's
query heads pay is summed), batches may be ragged, and the drop is a policy of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.context.interface import at_least
from vistok.context.keeping import Keeper, top_rows
from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument, given_cache, head_width
from vistok.ops.selection import gather_rows

SLACK = 16  # rows beyond the memory before it is compressed, as published
ACTIVATIONS = {None: None, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
PREFIX = "model.layers.{}.self_attn.memory_saver."


@dataclass(frozen=True)
class Mixing:
    """Shape of the convolutions.

    Attributes:
        memory: slots M of the cache.
        keep: share of them that holds heavy hitters as they are.
        local: last rows that are among those.
        layers: convolutions.
        kernel: their width, odd.
        expand: width of hidden layers, in mixed slots.
        activation: behind every convolution, the last included; None for none.
        start: share of the mix, beside the one-hot rows, before training; 0 drops all but heavy hitters.
        spread: standard deviation of the convolutions' weights before training. With 1, as published, softmax over
            wide keys is one row drawn by chance, which hardly learns; small ones begin near the mean of the rows.
    """

    memory: int = 128
    keep: float = 0.5
    local: int = 0
    layers: int = 1
    kernel: int = 21
    expand: int = 1
    activation: str | None = "relu"
    start: float = 0.5
    spread: float = 1.0

    def __post_init__(self) -> None:
        at_least("memory", self.memory, 1)
        at_least("layers", self.layers, 1)
        if not 0 <= self.keep < 1:
            raise VistokError(f"keep is {self.keep}: take a share from 0 to below 1.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise VistokError(f"kernel is {self.kernel}: take an odd width.")
        if not 0 <= self.local <= self.heavy:
            raise VistokError(f"local is {self.local}: take 0 to {self.heavy}, the rows that are kept as they are.")
        if self.activation not in ACTIVATIONS:
            raise VistokError(f"unknown activation '{self.activation}': choose {', '.join(filter(None, ACTIVATIONS))}.")

    @property
    def mixed(self) -> int:
        """Slots that are mixed."""
        return int(self.memory * (1 - self.keep))

    @property
    def heavy(self) -> int:
        """Slots of rows that stay as they are."""
        return self.memory - self.mixed


class MemorySaver(nn.Module):
    """The convolutions of one layer: keys and values of S rows to those of M.

    Args:
        mixing: their shape.
        head_dim: width of a head; all heads share the weights.
    """

    def __init__(self, mixing: Mixing, head_dim: int) -> None:
        super().__init__()
        self.mixing = mixing
        wide = mixing.mixed * mixing.expand
        widths = [2 * head_dim, *[wide] * (mixing.layers - 1), mixing.mixed]
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            conv = nn.Conv1d(inputs, outputs, mixing.kernel, padding=mixing.kernel // 2)
            nn.init.normal_(conv.weight, std=mixing.spread)
            nn.init.normal_(conv.bias, std=mixing.spread)
            parts.append(conv)
            if (activation := ACTIVATIONS[mixing.activation]) is not None:
                parts.append(activation())
        self.layers = nn.Sequential(*parts)
        self.normalizer = nn.Parameter(torch.full((1,), mixing.start))

    def forward(self, k: Tensor, v: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        """Returns M compressed rows of S.

        Args:
            k, v: [B, H, S, D], S >= ``memory``.
            received: attention that each row got, [B, H, S].

        Returns:
            Heavy hitters in their order, then mixed rows: keys and values [B, H, M, D].
        """
        heavy, rest = top_rows(received, self.mixing.heavy, self.mixing.local)
        rows = [torch.cat([gather_rows(x, heavy), gather_rows(x, rest)], 2) for x in (k, v)]
        keys, values = (x[:, :, self.mixing.heavy :] for x in rows)
        channels = torch.cat([keys, values], -1).mT.flatten(0, 1)  # [B * H, 2D, S']
        weights = self.layers(channels).softmax(-1).unflatten(0, keys.shape[:2])  # [B, H, mixed, S']
        best, _ = top_rows(received.gather(2, rest), self.mixing.mixed)
        one_hot = torch.zeros_like(weights).scatter(-1, best[..., None], 1.0)
        mix = (1 - self.normalizer) * one_hot + self.normalizer * weights
        kept = (x[:, :, : self.mixing.heavy] for x in rows)
        return tuple(torch.cat([old, mix @ x], 2) for old, x in zip(kept, (keys, values), strict=True))


@dataclass
class HeavyHitters(Keeper):
    """Keep the rows that got most attention from the last tokens, and the last rows; drop the others.

    Args:
        memory: rows that stay.
        local: how many of them are the last.
        chunk: tokens of a prompt that go together.
    """

    memory: int = 128
    local: int = 0
    chunk: int = 512

    name = "heavy-hitters"
    scored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("memory", self.memory, 1)
        at_least("chunk", self.chunk, 1)
        if not 0 <= self.local <= self.memory:
            raise VistokError(f"local is {self.local}: take 0 to {self.memory}, the rows that stay.")
        self.reset()

    def rows(self, tokens: int) -> int:
        return min(tokens, self.memory)

    def shrink(self, layer: int, k: Tensor, v: Tensor, received: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if k.shape[2] <= self.memory + SLACK:
            return None
        return self.compress(layer, k, v, received)

    def compress(self, layer: int, k: Tensor, v: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``memory`` rows of the rows [B, H, S, D]."""
        kept, _ = top_rows(received, self.memory, self.local)
        return gather_rows(k, kept), gather_rows(v, kept)


@dataclass
class LoCoCo(HeavyHitters):
    """Keeps heavy hitters, and mixes all other rows into slots by trained convolutions.

    Args:
        weights: a safetensors file or state dict with the published names, or the folder that a recipe wrote, whose
            ``config.json`` says the shape; None for a new one, to be trained.
        mixing: shape of the convolutions.
        chunk: tokens of a prompt that go together.
    """

    weights: Mapping[str, Tensor] | str | Path | None = None
    mixing: Mixing = field(default_factory=Mixing)
    savers: nn.ModuleList | None = field(default=None, init=False, repr=False)

    name = "lococo"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.weights, str | Path) and (folder := Path(self.weights).expanduser()).is_dir():
            self.mixing = read_mixing(folder)
        self.memory, self.local = self.mixing.memory, self.mixing.local
        super().__post_init__()

    def prepare(self, model: nn.Module) -> None:
        if self.savers is not None:
            return
        config = model.config.get_text_config(decoder=True)
        weight = model.get_input_embeddings().weight
        savers = nn.ModuleList(MemorySaver(self.mixing, head_width(config)) for _ in range(config.num_hidden_layers))
        self.savers = savers.to(weight.device, weight.dtype)
        if self.weights is not None:
            load_savers(self.savers, self.weights)

    def compress(self, layer: int, k: Tensor, v: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        return self.savers[layer](k, v, received.to(k.dtype))


def read_mixing(folder: Path) -> Mixing:
    """Returns the shape of trained convolutions, from the folder that their recipe wrote.

    Raises:
        VistokError: there is none.
    """
    try:
        return Mixing(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise VistokError(
            f"'{folder}' lacks a config.json with the shape of LoCoCo's convolutions: name the folder that a recipe "
            "wrote, or a weights file beside the Mixing that it was trained with."
        ) from error


def saver_state(savers: nn.ModuleList) -> dict[str, Tensor]:
    """Returns the weights of all layers under their published names."""
    return {
        PREFIX.format(layer) + name: tensor
        for layer, saver in enumerate(savers)
        for name, tensor in saver.state_dict().items()
    }


def load_savers(savers: nn.ModuleList, weights: Mapping[str, Tensor] | str | Path) -> None:
    """Fills the modules of all layers from the published names, strictly.

    Raises:
        VistokError: a file that cannot be read, a missing, unexpected or misshapen weight.
    """
    if not isinstance(weights, Mapping):
        from vistok.zoo.checkpoint import read_state_dict, weights_file

        path = Path(weights).expanduser()
        weights = read_state_dict(weights_file(path) if path.is_dir() else path)
    wanted = saver_state(savers)
    found = {name: tensor for name, tensor in weights.items() if ".memory_saver." in name}
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        what = f"lack {missing[0]}" if missing else f"have {unexpected[0]}, which is not wanted"
        raise VistokError(
            f"the LoCoCo weights {what}: name those of this model, and the Mixing that they were made with."
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise VistokError(
                f"{name} is {list(tensor.shape)}, but this Mixing needs {list(wanted[name].shape)}: pass the Mixing "
                "that the weights were trained with."
            )
    with torch.no_grad():
        for name, tensor in found.items():
            wanted[name].copy_(tensor)


def chunk_losses(model: nn.Module, ids: Tensor, chunk: int = 512, weights: Tensor | None = None) -> Iterator[Tensor]:
    """Yields the losses of a text's chunks, each read over the compressed cache of those before, as LoCoCo is trained.

    Take an optimizer step, or accumulate, after each: gradients reach the convolutions through one chunk alone, and not
    at all (``requires_grad`` is false) where the cache had room. The model must be in training mode, under
    :class:`LoCoCo`, whose ``savers`` hold the parameters.

    Args:
        model: a causal LM under ``vistok.context.apply(model, LoCoCo(...))``.
        ids: texts, int64 [B, T].
        chunk: tokens that are read together.
        weights: of each token's loss in the mean of its chunk, [B, T]; equal ones if None.

    Yields:
        Mean cross-entropy in nats of the next tokens of each chunk, the first of the next chunk included.
    """
    argument, cache = cache_argument(model), None
    for first in range(0, ids.shape[1] - 1, chunk):
        inputs = ids[:, first : first + chunk]
        targets = ids[:, first + 1 : first + chunk + 1]
        given = {} if cache is None else {argument: cache}
        output = model(input_ids=inputs[:, : targets.shape[1]], use_cache=True, **given)
        cache = given_cache(output)
        losses = F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        if weights is None:
            yield losses.mean()
        else:
            shares = weights[:, first + 1 : first + chunk + 1].flatten()
            yield (losses * shares).sum() / shares.sum()
