"""The package's KV cache as transformers' models see it: a ``Cache`` whose rows are kept by accepted paths."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vistok.ops import KVCache


class _Layer(CacheLayerMixin):
    """One layer of a ``TreeCache``; models that look at layers find the sizes of the whole."""

    is_sliding = False

    def __init__(self, cache: TreeCache, index: int):
        super().__init__()
        self.cache, self.index = cache, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        return self.cache.write(self.index, key_states, value_states)

    def get_seq_length(self, *args: Any) -> int:
        return self.cache.used

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else len(query_length)
        return self.cache.used + new, 0

    def get_max_length(self) -> int:
        return self.cache.capacity

    get_max_cache_shape = get_max_length  # its name before transformers 5.24


class TreeCache(Cache):
    """Keys and values of a batch, allocated when the first layer writes.

    Values that are narrower than keys (latent attention) are stored in rows of the keys' width.

    Args:
        layers: of the model.
        capacity: rows of each sequence.

    Attributes:
        rows: the package's cache; None before the first forward.
    """

    def __init__(self, layers: int, capacity: int):
        super().__init__(layers=[_Layer(self, index) for index in range(layers)])
        self.capacity = capacity
        self.rows: KVCache | None = None

    @property
    def used(self) -> int:
        """Rows that the longest sequence uses."""
        return 0 if self.rows is None else self.rows.bound

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new rows [B, H, T, D] of a layer, and returns old and new ones."""
        wide, narrow = keys.shape[-1], values.shape[-1]
        width = max(wide, narrow)
        if self.rows is None:
            batch, heads = keys.shape[:2]
            self.rows = KVCache(len(self.layers), batch, self.capacity, heads, width, keys.dtype, keys.device)
        if wide == narrow:
            return self.rows.write(layer, keys, values)
        keys, values = (F.pad(part, (0, width - part.shape[-1])) for part in (keys, values))
        keys, values = self.rows.write(layer, keys, values)
        return keys[..., :wide], values[..., :narrow]
