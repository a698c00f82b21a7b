"""Tri-grams as a draft law, and the tree search over them of ADED (arXiv 2407.12021).

The published search scores a roll-out by the weight of each step's *earlier* token; ``legacy_reward`` does so too. Its
order of successors and its random numbers change from call to call; here successors go from the heaviest to the
lightest, then by token, and the uniforms are given.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from vistok.errors import VistokError
from vistok.files import atomic_path

Pair = tuple[int, int]
KEPT = 12  # successors of a pair that are kept, as published
_COUNT, _PAIR, _ENTRY = struct.Struct("<Q"), struct.Struct("<ii"), struct.Struct("<if")


class Trigrams:
    """How likely tokens are behind two others.

    Args:
        weights: successors of each pair and their weights.

    Attributes:
        top: the largest token that occurs, -1 where none does.
    """

    def __init__(self, weights: dict[Pair, dict[int, float]] | None = None):
        self.weights = weights or {}
        self.top = max((token for pair, found in self.weights.items() for token in (*pair, *found)), default=-1)
        self._ordered: dict[Pair, list[tuple[int, float]]] = {}

    @staticmethod
    def of_texts(texts: Iterable[Sequence[int]], kept: int = KEPT) -> Trigrams:
        """Counts tri-grams and keeps the most frequent successors of every pair, at their share of all."""
        counts: dict[Pair, Counter[int]] = defaultdict(Counter)
        for text in texts:
            for first, second, third in zip(text, text[1:], text[2:], strict=False):
                counts[first, second][third] += 1
        return Trigrams({pair: _kept(found, found.total(), kept) for pair, found in counts.items()})

    @staticmethod
    def load(path: str | Path, kept: int = KEPT) -> Trigrams:
        """Reads the published file, a bincode map from pairs to maps from tokens to probabilities.

        Raises:
            VistokError: it is not there, or is no such file.
        """
        try:
            data = Path(path).read_bytes()
            weights, at = {}, _COUNT.size
            for _ in range(_COUNT.unpack_from(data)[0]):
                pair, (entries,) = _PAIR.unpack_from(data, at), _COUNT.unpack_from(data, at + _PAIR.size)
                at += _PAIR.size + _COUNT.size
                end = at + entries * _ENTRY.size
                if end > len(data):
                    raise ValueError("it ends within a map")
                weights[pair] = _kept(dict(_ENTRY.iter_unpack(data[at:end])), 1, kept)
                at = end
            if at != len(data):
                raise ValueError(f"{len(data) - at} bytes are left over")
        except (OSError, ValueError, struct.error) as error:
            raise VistokError(
                f"'{path}' is no file of tri-grams ({error}): name one that ADED's Writer wrote."
            ) from None
        return Trigrams(weights)

    def save(self, path: str | Path) -> None:
        """Writes the published layout."""
        parts = [_COUNT.pack(len(self.weights))]
        for pair, found in self.weights.items():
            parts += [_PAIR.pack(*pair), _COUNT.pack(len(found)), *(_ENTRY.pack(*entry) for entry in found.items())]
        with atomic_path(Path(path)) as file:
            file.write_bytes(b"".join(parts))

    def boost(self, text: Sequence[int], amount: float, cap: float) -> None:
        """Adds to the weight of each tri-gram of a text, up to a cap; weights are not normalised again."""
        if len(text) > 2:
            self.top = max(self.top, *text)
        for first, second, third in zip(text, text[1:], text[2:], strict=False):
            found = self.weights.setdefault((first, second), {})
            found[third] = min(found.get(third, 0.0) + amount, cap)
            self._ordered.pop((first, second), None)

    def behind(self, pair: Pair) -> list[tuple[int, float]]:
        """Successors of a pair and their weights, the heaviest first, then by token."""
        found = self._ordered.get(pair)
        if found is None:
            entries = self.weights.get(pair, {})
            found = self._ordered[pair] = sorted(entries.items(), key=lambda entry: (-entry[1], entry[0]))
        return found

    def weight(self, pair: Pair, token: int) -> float:
        """Weight of a token behind a pair; 0 where it never stood."""
        return self.weights.get(pair, {}).get(token, 0.0)


def _kept(found: dict[int, float], total: float, kept: int) -> dict[int, float]:
    best = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))[:kept]
    return {token: value / total for token, value in best}


class _Node:
    __slots__ = ("children", "pair", "score", "visits", "weight")

    def __init__(self, pair: Pair, weight: float):
        self.pair, self.weight = pair, weight
        self.visits, self.score = 0, 0.0
        self.children: list[_Node] = []

    def select(self, c1: float, c2: float) -> _Node:
        """The child to look at next: the first that was never visited, else the first of the best."""
        explore = (c1 + math.log((self.visits + c2 + 1) / c2)) * math.sqrt(self.visits)
        best, most = self.children[0], 0.0
        for child in self.children:
            if not child.visits:
                return child
            value = child.score / child.visits + explore * child.weight / (1 + child.visits)
            if value > most:
                best, most = child, value
        return best


def tree_search(
    trigrams: Trigrams,
    pair: Pair,
    uniforms: Iterator[float],
    iterations: int = 150,
    length: int = 4,
    c1: float = 32.0,
    c2: float = 8.0,
    legacy_reward: bool = False,
) -> list[tuple[list[int], int]]:
    """Monte-Carlo tree search (PUCT) for what may stand behind a pair.

    Args:
        trigrams: the law.
        pair: the last two tokens.
        uniforms: drawn from by roll-outs, in order.
        iterations: of the search.
        length: pairs of a sentence, the given one included.
        c1, c2: of the exploration.
        legacy_reward: score steps as published.

    Returns:
        Sentences, which begin with the pair's second token, and their visits; most visited first.
    """
    root = _Node(pair, 0.0)
    for _ in range(iterations):
        path, node = [root], root
        while node.children and len(path) < length:
            node = node.select(c1, c2)
            path.append(node)
        if len(path) < length and (found := trigrams.behind(node.pair)):
            node.children = [_Node((node.pair[1], token), weight) for token, weight in found]
            path.append(node.children[-1])
        state = [each.pair for each in path]
        while len(state) < length and (found := trigrams.behind(state[-1])):
            state.append((state[-1][1], _draw(found, next(uniforms))))
        score = 1.0 + sum(
            trigrams.weight(before, after[0 if legacy_reward else 1]) for before, after in pairwise(state)
        )
        for each in path:
            each.visits += 1
            each.score += score
    sentences: list[tuple[list[int], int]] = []
    _collect(root, [], sentences)
    return sorted(sentences, key=lambda entry: -entry[1])


def _draw(found: list[tuple[int, float]], uniform: float) -> int:
    total, reached = sum(weight for _, weight in found), 0.0
    for token, weight in found:
        reached += weight / total
        if uniform <= reached:
            return token
    return found[-1][0]


def _collect(node: _Node, before: list[int], sentences: list[tuple[list[int], int]]) -> None:
    sentence = [*before, node.pair[1]]
    sentences.append((sentence, node.visits))
    for child in node.children:
        _collect(child, sentence, sentences)


def extended(trigrams: Trigrams, sentences: Iterable[list[int]]) -> list[list[int]]:
    """Sentences with the heaviest successor of their last two tokens; one token alone stays alone."""
    found = []
    for sentence in sentences:
        behind = trigrams.behind((sentence[-2], sentence[-1])) if len(sentence) > 1 else []
        found.append([*sentence, behind[0][0]] if behind else sentence)
    return found


def draft_paths(sentences: Iterable[list[int]], choices: int) -> list[tuple[int, ...]]:
    """Drafts behind the first token of sentences, each once; those of most different tokens are left out first, until
    these counts sum to ``choices`` at most.
    """
    paths = list(dict.fromkeys(tuple(sentence[1:]) for sentence in sentences if len(sentence) > 1))
    different = [len(set(path)) for path in paths]
    total, left_out = sum(different), set()
    for number in sorted(range(len(paths)), key=lambda i: -different[i]):
        if total <= choices:
            break
        total -= different[number]
        left_out.add(number)
    return [path for number, path in enumerate(paths) if number not in left_out]


def trie(paths: Iterable[tuple[int, ...]], most: int) -> tuple[list[int], list[int]]:
    """Tokens and parents of the drafts that paths share, by depth, then by their tokens; at most so many.

    Returns:
        Tokens, and number of each one's parent, -1 for the root.
    """
    nodes = sorted({path[:end] for path in paths for end in range(1, len(path) + 1)}, key=lambda n: (len(n), n))[:most]
    number = {node: i for i, node in enumerate(nodes)}
    return [node[-1] for node in nodes], [number.get(node[:-1], -1) for node in nodes]
