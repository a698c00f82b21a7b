"""Medusa heads (arXiv 2401.10774): independent networks that read the target's final feature of a token, each of which
predicts the token so many places further on.

Published files (``medusa_lm_head.pt`` or ``.safetensors``) hold the heads alone, under the names of this module; their
``config.json`` counts heads and residual layers, and the widths are those of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.pretrained import CONFIG_FILE, Pretrained, read_entries
from vistok.zoo.registry import resolve

PUBLISHED = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")


@dataclass(frozen=True)
class MedusaConfig:
    """Shape of the heads.

    Attributes:
        hidden_size, vocab_size: of the target.
        medusa_num_heads: tokens that are predicted.
        medusa_num_layers: residual layers of a head.

    Raises:
        VistokError: a number below 1.
    """

    hidden_size: int
    vocab_size: int
    medusa_num_heads: int = 3
    medusa_num_layers: int = 1

    def __post_init__(self):
        if min(self.hidden_size, self.vocab_size, self.medusa_num_heads, self.medusa_num_layers) < 1:
            raise VistokError(f"Medusa heads have at least one token, layer and unit, got {self}.")


class ResBlock(nn.Module):
    """A linear layer and SiLU, added to what they read; nothing at first."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns states [..., H] of states [..., H]."""
        return x + F.silu(self.linear(x))


class Medusa(Pretrained, nn.ModuleList):
    """The heads; head k predicts the token k + 2 places behind the one whose feature it reads, k from 0.

    Attributes:
        ahead: how many there are.
    """

    arxiv: ClassVar[str] = "2401.10774"
    config_class = MedusaConfig
    family = "medusa"

    def __init__(self, config: MedusaConfig):
        width, size, layers = config.hidden_size, config.vocab_size, config.medusa_num_layers
        super().__init__(
            nn.Sequential(*(ResBlock(width) for _ in range(layers)), nn.Linear(width, size, bias=False))
            for _ in range(config.medusa_num_heads)
        )
        self.config, self.ahead = config, config.medusa_num_heads

    @staticmethod
    def initial(model: nn.Module, ahead: int = 3, layers: int = 1) -> Medusa:
        """Returns untrained heads for a causal LM: each says what the model's own output layer says."""
        output = model.get_output_embeddings().weight.detach()
        heads = Medusa(MedusaConfig(output.shape[1], output.shape[0], ahead, layers)).to(output.device)
        for head in heads:
            head[-1].weight.data.copy_(output)
        return heads

    def forward(self, features: Tensor) -> Tensor:
        """Returns the heads' logits [..., m, V] of final features [..., H]."""
        return torch.stack([head(features) for head in self], -2)

    def check(self, model: nn.Module) -> None:
        """Raises VistokError if the heads were made for another causal LM."""
        output = model.get_output_embeddings().weight
        mine, theirs = (self.config.vocab_size, self.config.hidden_size), tuple(output.shape)
        if mine != theirs:
            raise VistokError(
                f"these Medusa heads are for {mine[0]} tokens and a width of {mine[1]}, and the target has {theirs[0]} "
                f"and {theirs[1]}: take those that were trained for this model."
            )

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **options: Any) -> Medusa:
        """Loads heads strictly, of this package's recipe or published.

        Raises:
            VistokError: the name leads nowhere, or the weights are those of something else.
        """
        folder = resolve(name)
        file = next((folder / each for each in PUBLISHED if (folder / each).is_file()), None)
        if file is None:
            return super().from_pretrained(name, *args, **options)
        state, entries = read_state_dict(file), read_entries(folder / CONFIG_FILE)
        tables = [value for key, value in state.items() if value.ndim == 2 and ".linear." not in key]
        if not tables:
            raise VistokError(f"'{file}' holds no output layer of a Medusa head: name a folder with published heads.")
        # Files name a default of their config for what the weights hold, so heads are counted there.
        shape = MedusaConfig(*reversed(tables[0].shape), len(tables), int(entries.get("medusa_num_layers", 1)))
        heads = cls(shape)
        load_strict(heads, state, "Medusa heads")
        return heads.eval()
