"""What a frozen network makes of each picture, computed once, when it is first needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 32  # pictures that are extracted at a time


class Extracted:
    """Rows of pictures, extracted in chunks on first use.

    Args:
        length: pictures.
        extract: from their numbers [B] to their rows [B, ...].
        dtype: that rows are kept in.
        chunk: pictures that are extracted together.
    """

    def __init__(self, length: int, extract: Callable[[Tensor], Tensor], dtype: torch.dtype, chunk: int = CHUNK):
        self.extract, self.dtype, self.chunk = extract, dtype, chunk
        self.known = torch.zeros(length, dtype=torch.bool)
        self.rows: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Tensor:
        """Returns the rows of these pictures."""
        for chunk in (index[~self.known[index]] // self.chunk).unique().tolist():
            numbers = torch.arange(chunk * self.chunk, min((chunk + 1) * self.chunk, len(self.known)))
            found = self.extract(numbers).to("cpu", self.dtype)
            if self.rows is None:
                self.rows = torch.empty(len(self.known), *found.shape[1:], dtype=self.dtype)
            self.rows[numbers], self.known[numbers] = found, True
        return self.rows[index]
