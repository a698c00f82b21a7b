"""Hidden transfer (arXiv 2404.12022): linear maps turn a token's state at an inner layer into the states of the tokens
to come, which run through the layers above beside it.

No weights are published, so the key layout is this package's. All maps stand at one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.extra_rows import RowNetwork, nested
from vistok.zoo.pretrained import Pretrained


@dataclass(frozen=True)
class HiddenTransferConfig:
    """Shape of the maps.

    Attributes:
        hidden_size: width of the target's states.
        layer: the decoder layer that pseudo states enter in front of, from 1 (in front of layer 0 a token knows nothing
            of its context).
        ahead: pseudo states of a token.

    Raises:
        VistokError: a layer or a number below 1.
    """

    hidden_size: int
    layer: int
    ahead: int = 3

    def __post_init__(self):
        if self.layer < 1 or self.ahead < 1:
            raise VistokError(f"layer and ahead must be at least 1, got {self.layer} and {self.ahead}.")


class HiddenTransfer(Pretrained, RowNetwork):
    """The maps, which begin as the identity."""

    arxiv: ClassVar[str] = "2404.12022"
    config_class = HiddenTransferConfig
    family = "hidden-transfer"

    def __init__(self, config: HiddenTransferConfig):
        super().__init__()
        self.config = config
        self.hidden_size, self.layer, self.ahead = config.hidden_size, config.layer, config.ahead
        width = self.hidden_size
        self.transfer = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(self.ahead))
        for each in self.transfer:
            nn.init.eye_(each.weight)
        self.register_buffer("sees", nested(self.ahead), persistent=False)

    def states(self, attached: Tensor, which: Tensor) -> Tensor:
        """Returns the states of tokens, each through the map of its row."""
        which = which.expand(attached.shape[:2])
        found = torch.zeros_like(attached)
        for number, each in enumerate(self.transfer):
            mine = which == number
            found[mine] = each(attached[mine].to(each.weight.dtype)).to(attached.dtype)
        return found
