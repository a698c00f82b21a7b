"""Chains and trees that a draft network grows, of the depth and size that pay on this machine (``policies.sized``).

What is learnt: how far chains are accepted, how likely the network finds its best paths of each depth, and how much
more or less often these are right. What is chosen: a chain, or a tree by its levels, each of which costs a call of the
network, and its drafts, which cost rows of the target. Both are settled before a step draws anything, so trees of draws
stay lossless under the exact rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.interface import DraftHead
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import grow_chain, kind_of
from vistok.samplers.policies.dynamic import look
from vistok.samplers.policies.dyspec import layered
from vistok.samplers.policies.sized import BARE, KEEP, MARGIN, PRIOR, SIZES, Follows, Option, Sizer, interpolated
from vistok.samplers.run import Run, Verdict
from vistok.samplers.tree import LawKind, TokenTree

LEVELS, MOST = 6, 32  # levels of drafts, and drafts at most
TOP = 4  # nodes that are expanded in each level, and children of each
KEPT = 16  # values that are remembered of a level
FIRST = 0.7  # guess of how often the first draft of a chain is right


class Size(NamedTuple):
    """What is grown.

    Attributes:
        levels: calls of the network.
        drafts: at most; of a chain as many as levels.
        chain: one draft behind the other.
    """

    levels: int
    drafts: int
    chain: bool = False


class Valued(NamedTuple):
    """Nodes with what they are worth [B, M], and their levels below the root, int64 [B, M]."""

    value: Tensor
    level: Tensor

    def best(self, level: int, going: Tensor) -> list[float]:
        """The best values of a level, falling; the mean over texts that are ``going``."""
        mine = torch.where(self.level == level, self.value, 0.0)[going].float()
        found = mine.topk(min(KEPT, mine.shape[1])).values.mean(0).tolist()
        return found + [0.0] * (KEPT - len(found))


class SizedTree:
    """A tree policy that follows the text and the machine; a subclass grows.

    Its drafter calls ``measure`` and ``begin`` before a run, ``choose`` before each step, and ``learn`` behind it.

    Attributes:
        hides: nodes below the least value are not looked at.
    """

    hides: ClassVar[bool]
    chain: ClassVar[bool] = False
    nodes: ClassVar[int] = MOST + 1
    slots: ClassVar[int] = max(MOST, LEVELS * TOP)

    def __init__(self):
        self.sizer = Sizer()
        self._values: list[list[float]] = []  # of each level, falling
        self._promised, self._right = [PRIOR] * LEVELS, [PRIOR * 0.8] * LEVELS
        self._chains = Follows(LEVELS, FIRST)
        self._option: Option | None = None
        self.size: Size | None = None

    def kind(self, params: SamplingParams) -> LawKind:
        """How the drafts are chosen."""
        raise NotImplementedError

    def measure(self, target: Mapping[int, float], draft: Mapping[int, float]) -> None:
        """Take seconds of a step of the target, and of a call of the draft network, by rows."""
        self._target, self._call = target, draft

    def begin(self, run: Run) -> None:
        """A run begins."""
        self.sizer.begin(run)

    def choose(self, run: Run) -> bool:
        """Settle the size of the next tree; False if there is to be none."""
        self._option = self.sizer.next(self._options, interpolated(self._target, 1))
        self.size = None if self._option is None else self._option.tree
        return self.size is not None

    def pause(self) -> None:
        """There is to be no tree this time, whatever pays: another drafter's step begins."""
        self.sizer.pause()
        self._option = self.size = None

    def room(self, tokens: Sequence[float]) -> int:
        """How many rows behind its own the next step should score.

        Args:
            tokens: that none, one, two, ... of them are expected to add.
        """
        chosen = self._option
        own, form = (1, BARE) if chosen is None else (1 + chosen.tree.drafts, chosen.form)
        base, forwards = (1.0, interpolated(self._target, 1)) if chosen is None else (chosen.tokens, chosen.seconds)
        rest = forwards - interpolated(self._target, own) + self.sizer.beside(form)
        rates = [(base + more) / (rest + interpolated(self._target, own + n)) for n, more in enumerate(tokens)]
        best = max(range(len(rates)), key=rates.__getitem__)
        return best if rates[best] > MARGIN * rates[0] else 0

    def _worth(self) -> list[list[tuple[float, float]]]:
        """How often the best nodes of each level will be right, and their values; unseen levels fall as seen ones."""
        values = self._values or [[0.5 / 2**rank for rank in range(KEPT)]]
        found = []
        for level, known in enumerate(values):
            ratio = self._right[level] / max(self._promised[level], 1e-9)
            ratio = min(ratio, 0.98 / max(sum(known), 1e-9))
            found.append([(ratio * value, value) for value in known])
        totals = [sum(worth for worth, _ in nodes) for nodes in found[-2:]]
        fall = min(totals[1] / max(totals[0], 1e-9), 0.95) if len(totals) > 1 else min(totals[0], 0.95)
        while len(found) < LEVELS:
            found.append([(worth * fall, value * fall) for worth, value in found[-1]])
        return found

    def _options(self) -> list[Option]:
        found, rows = [], interpolated(self._call, 1)
        for level, right in enumerate(self._chains.tokens()):
            seconds = interpolated(self._target, 1 + level) + level * rows
            found.append(Option(Size(level, level, chain=True), 1 + right, seconds, (0, level)))
        del found[0]  # no draft
        worth, rows = self._worth(), interpolated(self._call, TOP)
        for levels in range(1, LEVELS + 1):
            right = [chance for chance, *_ in _best(worth, levels)]
            for drafts in (size for size in SIZES if size <= min(MOST, TOP + (levels - 1) * TOP**2)):
                seconds = interpolated(self._target, 1 + drafts) + levels * rows
                found.append(Option(Size(levels, drafts), 1 + sum(right[:drafts]), seconds, (1, levels)))
        return found

    def limits(self, size: Size) -> tuple[float, tuple[int, ...]]:
        """The value below which a node of such a tree is not worth its row, and the drafts of each level."""
        best = [(value, level) for _, value, level in _best(self._worth(), size.levels)[: size.drafts]]
        held = [level for _, level in best]
        return max(1e-6, min(value for value, _ in best)), tuple(map(held.count, range(size.levels)))

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """A chain or a tree of the size that was chosen."""
        if self.size.chain:
            tree = grow_chain(head, run, self.size.levels, self.kind(run.params))
        else:
            tree, self._looked, self._shown = self._grow(head, run, self.size)
        self._own = tree.nodes
        return tree

    def _grow(self, head: DraftHead, run: Run, size: Size) -> tuple[TokenTree, Valued, Valued]:
        """The tree; the nodes that were looked at, and those of them that it holds."""
        raise NotImplementedError

    def learn(self, run: Run, tree: TokenTree, verdict: Verdict) -> None:
        """Take over what became of the tree; other drafts may stand behind its own nodes."""
        own = 1 if self.size is None else self._own
        rows = [interpolated(self._target, nodes) for nodes in (own, tree.nodes)]
        self.sizer.learn(run, verdict, rows[1] - rows[0])
        going = run.decided < run.length
        if self.size is None or not bool(going.any()):
            return
        path = torch.arange(tree.nodes, device=going.device)[None] if verdict.path is None else verdict.path
        places = torch.arange(path.shape[1], device=going.device)
        kept = ((places < verdict.count[:, None]) & (path >= 0) & (path < self._own))[going]
        if self.size.chain:
            for count in kept.sum(1).tolist():
                self._chains.learn(count - 1, self._own - 1)
        else:
            self._learn_tree(going, kept.float().mean(0).tolist() + [0.0] * LEVELS)

    def _learn_tree(self, going: Tensor, right: list[float]) -> None:
        """Note how often a node of each depth was kept, and what the network thought of its nodes."""
        least, _ = self.limits(self.size) if self.hides else (0.0, ())
        for level in range(self.size.levels):
            seen, promised = self._looked.best(level + 1, going), sum(self._shown.best(level + 1, going))
            if level < len(self._values):
                old = self._values[level]
                # What is worth less than the least was not looked at.
                seen = [max(new, min(before, least)) for new, before in zip(seen, old, strict=True)]
                seen = [KEEP * before + (1 - KEEP) * new for new, before in zip(seen, old, strict=True)]
            self._values[level : level + 1] = [sorted(seen, reverse=True)]
            self._right[level] = KEEP * self._right[level] + right[level + 1]
            self._promised[level] = KEEP * self._promised[level] + promised


def _best(worth: list[list[tuple[float, float]]], levels: int) -> list[tuple[float, float, int]]:
    """The nodes of the upper levels, the best first: how often each is right, its value, and its level."""
    return sorted(((*node, level) for level in range(levels) for node in worth[level]), reverse=True)


class SizedDynamic(SizedTree):
    """EAGLE-2's tree of the most likely paths, as deep and large as it pays."""

    hides = False

    def kind(self, params: SamplingParams) -> LawKind:
        """The most likely tokens are no draws."""
        return LawKind.DETERMINISTIC

    def _grow(self, head: DraftHead, run: Run, size: Size) -> tuple[TokenTree, Valued, Valued]:
        looked = look(head, run, size.levels - 1, TOP)
        tree, chosen = looked.tree(run, size.drafts)
        chance, level = looked.score.exp(), looked.level.expand(len(looked.score), -1)
        return tree, Valued(chance, level), Valued(chance.gather(1, chosen), level.gather(1, chosen))


class SizedLayers(SizedTree):
    """DySpec's tree by layers, whose threshold and depth are those that pay."""

    hides = True

    def kind(self, params: SamplingParams) -> LawKind:
        """Siblings are drawn without replacement."""
        return kind_of(params, LawKind.WITHOUT_REPLACEMENT)

    def _grow(self, head: DraftHead, run: Run, size: Size) -> tuple[TokenTree, Valued, Valued]:
        least, widths = self.limits(size)
        tree, slots = layered(head, run, least, size.drafts + 1, size.levels, KEPT, widths)
        exists = tree.shape.parents >= 0
        valued = Valued(torch.where(exists, slots, 0.0), tree.shape.depth.expand(len(slots), -1))
        return tree, valued, valued


def sized_policy(policy: Any, sized: type[SizedTree]) -> Any:
    """A drafter's policy, ``auto`` replaced by a new one of its kind of sized trees.

    Raises:
        VistokError: another word.
    """
    if isinstance(policy, str):
        if policy != "auto":
            raise VistokError(f"the policy is '{policy}': give a tree policy, or 'auto'.")
        return sized()
    return policy
