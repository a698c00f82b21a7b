"""Which weights a number was measured with."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """Returns the first 12 hex digits of the SHA-256 of all weights in key order: the same for any file format."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
