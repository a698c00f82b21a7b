"""Whether a language model reads back: needles in passages of the embedded corpus, under any policy of its cache.

A passage is read as a prompt, and every needle in it is asked for in a decode of its own, from a copy of the cache that
the passage left. So a policy does not know the question when it decides what to keep, and answers by decode steps, the
question's tokens included. Decoding is greedy; an answer counts when all of its tokens are right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok import context
from vistok.context.interface import Policy
from vistok.data.needles import Needle, NeedleText
from vistok.eval.decoding.estimate import Estimate, ratio_estimate
from vistok.eval.plots import new_figure, save_figure
from vistok.models.huggingface import cache_argument, given_cache
from vistok.ops.noise import derive_seed


@dataclass(frozen=True)
class NeedlePoint:
    """What one policy finds in passages of one length.

    Attributes:
        policy: as the command names it.
        length: tokens of a passage.
        texts: passages.
        needles: in each passage, all of which were asked for.
        found: share of them, with its interval of 95 % by the bootstrap over passages.
        by_depth: share found of the needles of each part of the passages, from its beginning on.
        by_text: needles found in each passage; those of two policies are of the same questions.
        reads: rows of keys and values that decode steps read, selection included, over those of full attention.
        kept: rows in the cache over tokens.
    """

    policy: str
    length: int
    texts: int
    needles: int
    found: Estimate
    by_depth: tuple[float, ...]
    by_text: tuple[int, ...]
    reads: float
    kept: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def check_needles(
    model: nn.Module, text: NeedleText, policy: Policy, lengths: Sequence[int], needles: int, texts: int, seed: int = 0
) -> None:
    """Refuse what :func:`find_needles` could not measure, before a model reads the first passage.

    Raises:
        VistokError: the needles do not fit into a passage, or the policy cannot work on the model.
    """
    with context.apply(model, policy):
        for length in lengths:
            for row in range(texts):
                _passage(text, length, needles, seed, row)


def _passage(text: NeedleText, length: int, needles: int, seed: int, row: int) -> tuple[Tensor, list[Needle]]:
    return text.passage(length, needles, torch.Generator().manual_seed(derive_seed(seed, row)))


@torch.no_grad()
def find_needles(
    model: nn.Module,
    text: NeedleText,
    policy: Policy,
    length: int,
    needles: int,
    texts: int,
    *,
    name: str | None = None,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> NeedlePoint:
    """Asks a model for all needles of passages.

    Args:
        model: a causal LM.
        text: where passages come from, in its tokens.
        policy: how it keeps and reads its cache.
        length: tokens of a passage.
        needles: of a passage, one in each of as many parts of it.
        texts: passages.
        name: of the policy in the answer; its own if None.
        seed: of passages and needles; the same one asks the same questions.
        advance: called behind each passage.

    Raises:
        VistokError: the needles do not fit into a passage, or the policy cannot work on the model.
    """
    right = torch.zeros(texts, needles)
    reads, kept = [], []
    with context.apply(model, policy) as at_work:
        for row in range(texts):
            ids, hidden = _passage(text, length, needles, seed, row)
            output = model(input_ids=ids[None].to(model.device), use_cache=True, logits_to_keep=1)
            for column, needle in enumerate(hidden):
                right[row, column] = finds(model, given_cache(output), needle)
            reads.append(at_work.last.share)
            kept.append(at_work.last.kept[0] / at_work.last.tokens[0])
            if advance is not None:
                advance()
    by_text, by_depth = right.sum(1).int().tolist(), right.mean(0).tolist()
    found = ratio_estimate(by_text, [needles] * texts)
    named = (name or policy.name, length, texts, needles)
    return NeedlePoint(*named, found, tuple(by_depth), tuple(by_text), sum(reads) / texts, sum(kept) / texts)


def finds(model: nn.Module, cache: Any, needle: Needle, before: Sequence[int] = ()) -> bool:
    """Whether greedy decoding gives the answer to a question behind what a cache holds; the cache stays as it is.

    Args:
        model: a causal LM under the cache's policy.
        cache: of one sequence.
        needle: what is asked for.
        before: tokens between what the cache holds and the question.
    """
    cache = copy.deepcopy(cache)
    *asked, last = *before, *needle.question.tolist()
    answer = needle.answer.tolist()
    for token in asked:
        _next(model, cache, token)
    return all(_next(model, cache, token) == wanted for token, wanted in zip([last, *answer], answer, strict=False))


def _next(model: nn.Module, cache: Any, token: int) -> int:
    given = {"input_ids": torch.tensor([[token]], device=model.device), cache_argument(model): cache}
    return int(model(**given, use_cache=True).logits[0, -1].argmax())


def plot_needles(points: Sequence[NeedlePoint], path: str | Path) -> None:
    """Draw the share that was found, by length and depth, one panel a policy.

    Args:
        points: all lengths of each policy, with as many needles each.
        path: picture to write.

    Raises:
        VistokError: matplotlib is not installed.
    """
    names = list(dict.fromkeys(point.policy for point in points))
    figure = new_figure(1 + 2.6 * len(names), 3.2)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        rows = [point for point in points if point.policy == name]
        image = panel.imshow([row.by_depth for row in rows], vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        panel.set(title=name, xlabel="depth", yticks=range(len(rows)), yticklabels=[row.length for row in rows])
        panel.set_xticks([-0.5, len(rows[0].by_depth) - 0.5], ["start", "end"])
    panels[0].set_ylabel("tokens")
    figure.colorbar(image, ax=panels, label="share found")
    save_figure(figure, path)
