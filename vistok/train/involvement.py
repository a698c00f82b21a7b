"""LeMo (arXiv 2501.09767): tokens that a layer hardly attends to pass it by, so autograd stores nothing for them.

In a decoder layer only rows ``I`` enter: ``y = x; y[I] = layer(x[I])`` at their own positions, causal among themselves.
``I`` is made of blocks of tokens, the first and the last always among them, by the attention that their keys receive,
measured (:class:`Received`) or foretold by a small trained network (:class:`Predicted`). There is no public code; this
follows the publication. Rows whose loss is taken should stay involved where their answers matter: name the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError

SCORES = "vistok_received"  # name of the attention that sums what keys receive
QUERIES = 256  # rows of attention that are in memory at a time


def received_scores(attention: Tensor) -> Tensor:
    """Mean over heads and queries of the attention that each key gets: [..., T] of [..., H, T, T]; sums to 1."""
    return attention.mean((-3, -2))


def block_sums(scores: Tensor, block: int) -> Tensor:
    """Sums of ``block`` tokens each, the last may be shorter: [..., ceil(T / block)] of [..., T]."""
    return F.pad(scores, (0, -scores.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)


def block_means(x: Tensor, block: int) -> Tensor:
    """Means of ``block`` rows each, the last may be shorter: [..., ceil(T / block), D] of [..., T, D]."""
    sums = block_sums(x.mT, block).mT
    return sums / block_sums(torch.ones_like(x[..., 0]), block)[..., None]


def kept_blocks(sums: Tensor, epsilon: float) -> Tensor:
    """The fewest blocks that hold all but a share ``epsilon`` of the scores, the first and the last among them.

    Args:
        sums: [..., N]; blocks join by descending sum, of equal ones the first.
        epsilon: share that may be lost.

    Returns:
        bool [..., N].
    """
    ends = torch.zeros_like(sums, dtype=torch.bool)
    ends[..., 0] = ends[..., -1] = True
    order = sums.masked_fill(ends, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    held = sums.gather(-1, order).cumsum(-1)
    enough = held >= (1 - epsilon) * sums.sum(-1, keepdim=True)
    needed = ~F.pad(enough, (1, -1), value=False)  # up to and with the block that reaches the share
    return torch.zeros_like(ends).scatter(-1, order, needed) | ends


def block_attention(attention: Tensor, block: int) -> Tensor:
    """Mean over a block's rows of what they pay to each block: [N, N] of [T, T]."""
    return block_means(block_sums(attention, block), block)


class Predictor(nn.Module):
    """A low-rank guess at a layer's attention between blocks: ``softmax((X A)(X B)^T / sqrt(r))``, causal over blocks.

    Args:
        width: of the hidden states D.
        rank: r.
        block: tokens of a block.
    """

    def __init__(self, width: int, rank: int = 16, block: int = 16) -> None:
        super().__init__()
        self.query = nn.Linear(width, rank, bias=False)
        self.key = nn.Linear(width, rank, bias=False)
        self.block = block

    def logs(self, x: Tensor) -> Tensor:
        """Log of the block attention, [..., N, N] of hidden states [..., T, D]; -inf for later blocks."""
        means = block_means(x, self.block)
        logits = self.query(means) @ self.key(means).mT / math.sqrt(self.query.out_features)
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return logits.masked_fill(later, -torch.inf).log_softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """The block attention [..., N, N]."""
        return self.logs(x).exp()


def predictor_loss(predictor: Predictor, x: Tensor, attention: Tensor) -> Tensor:
    """Mean over blocks of KL(true block attention || predicted), nats; attention [T, T] is a mean over heads."""
    target = block_attention(attention, predictor.block)
    logs = predictor.logs(x)
    terms = torch.xlogy(target, target) - target * logs.masked_fill(target == 0, 0)
    return terms.sum(-1).mean()


def recall(true: Tensor, predicted: Tensor) -> Tensor:
    """Share of the truly kept blocks that are predicted too."""
    return (true & predicted).sum().double() / true.sum()


class Selection(Protocol):
    """Which tokens a layer involves."""

    block: int

    def __call__(self, index: int, layer: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Blocks that stay, bool [B, N], of hidden states [B, T, D] that come into layer ``index``."""


class Received:
    """Blocks by the attention that their keys receive, measured in a pass of the layer's attention without gradients.

    Args:
        epsilon: share of attention that may be lost, for all layers or by layer.
        block: tokens of a block.
    """

    def __init__(self, epsilon: float | Sequence[float] = 0.1, block: int = 16) -> None:
        self.epsilon, self.block = epsilon, block

    def __call__(self, index: int, layer: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        epsilon = self.epsilon if isinstance(self.epsilon, float) else self.epsilon[index]
        return kept_blocks(block_sums(layer_scores(layer, x, arguments), self.block), epsilon)


class Predicted:
    """Blocks by what a trained predictor of each layer foretells.

    Args:
        predictors: one a layer.
        epsilon: as for :class:`Received`.
    """

    def __init__(self, predictors: Sequence[Predictor], epsilon: float | Sequence[float] = 0.1) -> None:
        self.predictors, self.epsilon, self.block = predictors, epsilon, predictors[0].block

    @torch.no_grad()
    def __call__(self, index: int, layer: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        epsilon = self.epsilon if isinstance(self.epsilon, float) else self.epsilon[index]
        return kept_blocks(self.predictors[index](x).mean(-2), epsilon)


class Share:
    """A fixed share of the blocks, those of highest score; at random for comparison.

    Args:
        share: of the blocks that stay.
        block: tokens of a block.
        seed: for random blocks; None for those that receive most.
        window: tokens of which the share stays, each window by itself: as more queries see early keys, of a whole text
            the early half would stay. All tokens if None.

    Raises:
        VistokError: the window is shorter than two blocks.
    """

    def __init__(self, share: float = 0.5, block: int = 16, seed: int | None = None, window: int | None = None) -> None:
        if window is not None and window < 2 * block:
            raise VistokError(f"window is {window}: take at least two blocks of {block} tokens.")
        self.share, self.block, self.window = share, block, window
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, index: int, layer: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        if self.generator is None:
            sums = block_sums(layer_scores(layer, x, arguments), self.block)
        else:
            sums = torch.rand(len(x), -(-x.shape[1] // self.block), generator=self.generator).to(x.device)
        sums[:, 0] = sums[:, -1] = torch.inf
        each = sums.shape[1] if self.window is None else self.window // self.block
        return torch.cat([_highest(part, self.share) for part in sums.split(each, 1)], 1)


def _highest(sums: Tensor, share: float) -> Tensor:
    """Which columns of [B, N] are the highest share of their row, one at least: bool [B, N]."""
    count = max(1, round(share * sums.shape[1]))
    return torch.zeros_like(sums, dtype=torch.bool).scatter(1, sums.topk(count).indices, True)


def tokens_of(kept: Tensor, block: int, length: int) -> Tensor:
    """Token numbers of kept blocks, int64 [B, M]; sequences that keep fewer get their first left-out tokens besides."""
    tokens = kept.repeat_interleave(block, -1)[:, :length]
    count = int(tokens.sum(-1).max())
    chosen = (~tokens).to(torch.int8).sort(dim=-1, stable=True).indices[:, :count]
    return chosen.sort(-1).values


def run_involved(
    layer: Callable[..., Any], x: Tensor, tokens: Tensor, position_embeddings: tuple[Tensor, Tensor], **arguments: Any
) -> Any:
    """Run a decoder layer on some tokens of each sequence.

    Args:
        layer: the layer, or its forward.
        x: hidden states [B, T, D].
        tokens: int64 [B, M], ascending.
        position_embeddings: tables of the rotation, [B or 1, T, R] each.
        arguments: those of the layer besides; a mask and positions are cut to the tokens.

    Returns:
        What the layer returns, with [B, T, D] hidden states in which the other rows are ``x`` itself.
    """
    rows = tokens[..., None].expand(-1, -1, x.shape[-1])
    few = tuple(
        part.expand(len(x), -1, -1).gather(1, tokens[..., None].expand(-1, -1, part.shape[-1]))
        for part in position_embeddings
    )
    mask, positions = arguments.pop("attention_mask", None), arguments.pop("position_ids", None)
    if mask is not None:
        across = tokens[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
        mask = mask.expand(len(x), -1, -1, -1).gather(2, across)
        mask = mask.gather(3, tokens[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
    if positions is not None:
        positions = positions.expand(len(x), -1).gather(1, tokens)
    cut = {"attention_mask": mask, "position_ids": positions, "position_embeddings": few}
    output = layer(x.gather(1, rows), **arguments, **cut)
    hidden = output[0] if isinstance(output, tuple) else output
    whole = x.scatter(1, rows, hidden)
    return (whole, *output[1:]) if isinstance(output, tuple) else whole


@contextmanager
def involve(model: nn.Module, select: Selection, layers: Sequence[int] | None = None) -> Iterator[Involvement]:
    """Let decoder layers of a transformers model run on the tokens that a selection names, for training.

    Works on a PEFT model and under gradient checkpointing. The model runs without a cache.

    Args:
        model: a causal LM.
        select: which blocks each layer involves.
        layers: which layers leave tokens out; all but the first two and the last if None.

    Yields:
        What was kept, by layer.

    Raises:
        VistokError: the model has no such layers, or already leaves tokens out.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder()
    found = list(getattr(decoder, "layers", ()))
    if not found or not hasattr(found[0], "self_attn"):
        raise VistokError(
            f"{type(base).__name__} has no decoder layers with self_attn: tokens cannot be left out of it."
        )
    chosen = list(range(2, len(found) - 1)) if layers is None else list(layers)
    if wrong := [index for index in chosen if not 0 <= index < len(found)]:
        raise VistokError(f"there is no layer {wrong[0]}: the model has layers 0 to {len(found) - 1}.")
    if any("forward" in vars(found[index]) for index in chosen):
        raise VistokError("tokens are left out of these layers already: leave the other involve() first.")
    told = Involvement()
    for index in chosen:
        vars(found[index])["forward"] = _Involved(found[index], index, select, told)
    try:
        yield told
    finally:
        for index in chosen:
            del vars(found[index])["forward"]


class Involvement:
    """Tokens kept and tokens there were in the last forward, by layer."""

    def __init__(self) -> None:
        self.kept: dict[int, int] = {}
        self.tokens = 0

    @property
    def share(self) -> float:
        """Kept tokens over tokens, mean over layers that leave some out; 1 before the first forward."""
        return sum(self.kept.values()) / (len(self.kept) * self.tokens) if self.kept else 1.0


class _Involved:
    """A layer's forward that runs on some tokens."""

    def __init__(self, layer: nn.Module, index: int, select: Selection, told: Involvement) -> None:
        self.layer, self.index, self.select, self.told = layer, index, select, told

    def __call__(self, hidden_states: Tensor, *args: Any, **arguments: Any) -> Any:
        plain = type(self.layer).forward.__get__(self.layer)
        if arguments.get("cache") is not None or arguments.get("past_key_values") is not None:
            raise VistokError("a layer that leaves tokens out keeps no cache: call the model with use_cache=False.")
        if args or "position_embeddings" not in arguments:
            raise VistokError(
                f"{type(self.layer).__name__} takes no position_embeddings: tokens cannot be left out of it."
            )
        length = hidden_states.shape[1]
        with torch.no_grad():
            kept = self.select(self.index, self.layer, hidden_states, arguments)
        tokens = tokens_of(kept, self.select.block, length)
        self.told.kept[self.index], self.told.tokens = tokens.shape[1], length
        return run_involved(plain, hidden_states, tokens, **arguments)


@torch.no_grad()
def layer_scores(layer: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Attention that each token's key receives in a layer, [B, T], sums to 1; see :func:`received_scores`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = layer.self_attn
    found: list[Tensor] = []

    def summed(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
        found.append(_column_means(q, k, mask, options.get("scaling")))
        return q.transpose(1, 2), None  # nobody reads it

    config = attention.config
    earlier, training = config._attn_implementation, attention.training
    ALL_ATTENTION_FUNCTIONS[SCORES] = summed
    config._attn_implementation_internal = SCORES
    attention.eval()
    try:
        attention(hidden_states=layer.input_layernorm(x), **arguments)
    finally:
        attention.train(training)
        config._attn_implementation_internal = earlier
        del ALL_ATTENTION_FUNCTIONS[SCORES]
    return found[0]


def _column_means(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention that keys [B, Hkv, T, D] receive from queries [B, Hq, T, D], mean over both, [B, T]."""
    from vistok.context.keeping import attention_weights

    total, length = 0.0, q.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    for first in range(0, length, QUERIES):
        rows = slice(first, first + QUERIES)
        seen = causal[rows][None]
        if mask is not None:
            allowed = mask if mask.dtype == torch.bool else mask >= 0
            seen = seen & allowed[:, 0, rows]
        total = total + attention_weights(q[:, :, rows], k, seen, scale).nan_to_num(0.0).sum((1, 2, 3))
    return total / total.sum(-1, keepdim=True)


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Count what autograd stores for the backward pass: the one entry of the list is the bytes of distinct storages."""
    seen: dict[int, Any] = {}
    total = [0]

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if not isinstance(x, nn.Parameter) and x.grad_fn is not None and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage  # held, so that no later storage gets its address
            total[0] += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield total
