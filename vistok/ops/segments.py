"""Cross-entropy of long sequences without all their logits at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100


def segmented_cross_entropy(
    hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, segment: int = 1024
) -> Tensor:
    """Mean cross-entropy, its value and gradient those of the whole, with the logits of one segment in memory.

    Args:
        hidden: [..., D], what each target is predicted from.
        head: hidden states to logits [..., V].
        targets: int64 [...]; -100 for none.
        segment: rows whose logits are formed at a time; they are formed anew in the backward pass.

    Returns:
        A scalar in nats; 0 where there is no target.
    """
    rows, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    total = hidden.new_zeros((), dtype=torch.float32)

    def loss(part: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), labels, ignore_index=IGNORED, reduction="sum")

    for first in range(0, len(rows), segment):
        part = (rows[first : first + segment], wanted[first : first + segment])
        total = total + checkpoint(loss, *part, use_reentrant=False)
    return total / (wanted != IGNORED).sum().clamp(min=1)
