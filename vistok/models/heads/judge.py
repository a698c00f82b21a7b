"""The head of judge decoding (arXiv 2501.19309): is a draft right, whatever the target itself would have said?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vistok.zoo.pretrained import Pretrained


@dataclass(frozen=True)
class JudgeConfig:
    """Shape of the head.

    Attributes:
        hidden_size: width of the target's final features.
    """

    hidden_size: int


class JudgeHead(Pretrained, nn.Module):
    """A linear map and a sigmoid. No weights are published, so the key layout is this package's."""

    config_class = JudgeConfig
    family = "judge"

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        self.score = nn.Linear(config.hidden_size, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the log-odds [...] of features [..., H]."""
        return self.score(hidden.to(self.score.weight.dtype))[..., 0]

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the probability [...] that a draft is correct, from the target's features at it, [..., H]."""
        return self.logits(hidden).sigmoid()
