"""The package's KV cache behind transformers' interface, for a model whose policy stores and reads rows itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vistok.context.interface import Policy
from vistok.errors import VistokError
from vistok.ops import KVCache
from vistok.ops.cache import Mark

ROOM = 256  # rows beyond the prompt in a new cache; it grows by doubling


class _Layer(CacheLayerMixin):
    """One layer as models see it: what it is given goes on to the attention, which is the policy's."""

    is_sliding = False

    def __init__(self, cache: ContextCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        return key_states, value_states

    def get_seq_length(self, *args: Any) -> int:
        return self.cache.columns

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else len(query_length)
        return self.cache.columns + new, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.24

    @property
    def is_croppable(self) -> bool:
        return self.cache.policy.keeps_all

    def crop(self, tokens_to_remove: int) -> None:
        """Cropping is the whole cache's."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reordering is the whole cache's."""


class ContextCache(Cache):
    """What a policy keeps of a batch.

    Attributes:
        policy: a copy of what it was made for, with the state of these sequences.
        rows: the package's cache; None before the first forward.
        columns: tokens of the batch so far, padding included.
        tokens: real tokens of each sequence so far, int64 [B].
        broken: whether a forward or an edit was broken off that had changed older rows.
    """

    def __init__(self, layers: int, policy: Policy) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self.policy = copy.copy(policy)  # whose state is this cache's alone
        self.policy.reset()
        self.rows: KVCache | None = None
        self.columns = 0
        self.tokens: Tensor | None = None
        self.broken = False

    def allocate(self, q: Tensor, k: Tensor) -> KVCache:
        """Makes and returns the rows, for queries and keys of the first forward [B, H, T, D]."""
        heads = self.policy.cache_heads(q.shape[1], k.shape[1])
        length = k.shape[2] + ROOM if self.policy.keeps_all else ROOM
        self.rows = KVCache(len(self.layers), len(k), length, heads, k.shape[3], k.dtype, k.device)
        return self.rows

    @property
    def is_croppable(self) -> bool:
        return self.policy.keeps_all

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, so many as the negative number says; or (a positive one) all behind so many.

        Raises:
            VistokError: the policy has dropped rows, so it cannot go back.
        """
        if tokens_to_remove == 0 or self.rows is None:
            return
        if not self.policy.keeps_all:
            raise VistokError(
                f"{self.policy.name} has dropped rows, so it cannot take tokens back: decode without an assistant, or "
                "under a policy that keeps all rows."
            )
        count = -tokens_to_remove if tokens_to_remove < 0 else self.columns - tokens_to_remove
        self.columns -= count
        self.tokens = self.tokens - count
        self.rows.crop(self.rows.common_length - count if self.rows.common_length is not None else self.tokens)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.rows.reorder(beam_idx)
        self.tokens = self.tokens[beam_idx]
        self.policy.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise VistokError("a cache under a policy cannot be repeated: repeat the prompts instead.")

    batch_select_indices = reorder_cache

    def reset(self) -> None:
        self.rows, self.columns, self.tokens, self.broken = None, 0, None, False
        self.policy.reset()

    def undo(self, start: Mark | None) -> None:
        """Forgets a forward that was broken off.

        Args:
            start: the rows in use before it; None if it has stored none.
        """
        if self.columns == 0:
            self.reset()
        elif start is not None and self.policy.keeps_all:
            self.rows.restore(start)
            self.policy.reset()
        elif start is not None:
            self.broken = True

    def check(self) -> None:
        """Raises VistokError if the rows are no longer those of the text."""
        if self.broken:
            raise VistokError(
                f"a forward or an edit of this cache under {self.policy.name} was broken off half-way, and its rows "
                "are lost: begin anew, without it."
            )

    def step_tokens(self, batch: int, device: torch.device) -> Tensor:
        """Returns the real tokens so far, int64 [B]."""
        return torch.zeros(batch, dtype=torch.int64, device=device) if self.tokens is None else self.tokens
