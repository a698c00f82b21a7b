"""Continuations by suffix match: in the text so far, and in a datastore of tokens (REST, arXiv 2311.08252)."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vistok.errors import VistokError
from vistok.files import atomic_path

DEPTH = 16  # tokens by which suffixes are sorted, and the longest match


class GrowingText:
    """A text with the places of its n-grams, kept up to date while it grows.

    Args:
        tokens: that it begins with.
        ngram: longest n-gram that is looked up.
    """

    def __init__(self, tokens: Iterable[int], ngram: int):
        self.tokens: list[int] = []
        self._ngram = ngram
        self._ends: dict[tuple[int, ...], list[int]] = {}  # n-grams to where they end, in rising order
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            for size in range(1, min(self._ngram, end) + 1):
                self._ends.setdefault(tuple(self.tokens[end - size :]), []).append(end)

    def earlier(self, count: int, length: int) -> tuple[list[tuple[int, ...]], int]:
        """Returns what followed the longest n-gram that ends the text where it stood before, latest first, and its n.

        Args:
            count: most continuations, no two of which are equal.
            length: most tokens of each.
        """
        for size in range(min(self._ngram, len(self.tokens) - 1), 0, -1):
            ends = self._ends[tuple(self.tokens[-size:])]
            if len(ends) > 1:  # the last of them is the text's end itself
                found: dict[tuple[int, ...], None] = {}
                for end in itertools.islice(reversed(ends), 1, None):
                    found.setdefault(tuple(self.tokens[end : end + length]))
                    if len(found) == count:
                        break
                return list(found), size
        return [], 0


class Datastore:
    """Tokens whose suffixes are sorted.

    Args:
        tokens: int32 [n].
        order: where suffixes begin, sorted by their first tokens, int32 [n].
        tokenizer: digest of the tokenizer's vocabulary, see ``vocabulary_digest``; None if it is not known.
    """

    def __init__(self, tokens: np.ndarray, order: np.ndarray, tokenizer: str | None = None):
        self.tokens, self.order, self.tokenizer = tokens, order, tokenizer

    @staticmethod
    def of_texts(texts: Iterable[Sequence[int]], tokenizer: Any | None = None) -> Datastore:
        """Sorts the suffixes of texts.

        Args:
            texts: tokens of each; a match may not run from one into the next, but a continuation may.
            tokenizer: that made them, to be compared with the target's.

        Raises:
            VistokError: there are no tokens.
        """
        parts = [np.asarray(text, dtype=np.int32) for text in texts]
        tokens = np.concatenate(parts) if parts else np.empty(0, np.int32)
        if not len(tokens):
            raise VistokError("a datastore needs at least one token: name texts that are not empty.")
        digest = None if tokenizer is None else vocabulary_digest(tokenizer)
        return Datastore(tokens, sorted_suffixes(tokens), digest)

    def behind(self, text: Sequence[int], ngram: int, count: int, length: int) -> list[tuple[int, ...]]:
        """Returns what follows the longest n-gram that ends a text, the most frequent first.

        Args:
            text: tokens.
            ngram: longest n-gram.
            count: most continuations.
            length: most tokens of each.
        """
        for size in range(min(ngram, len(text), DEPTH), 0, -1):
            low, high = self._range(np.asarray(text[-size:], dtype=np.int32))
            if low < high:
                starts = self.order[low:high][: 64 * count].astype(np.int64) + size
                found = Counter(tuple(self.tokens[at : at + length].tolist()) for at in starts if at < len(self.tokens))
                return [path for path, _ in found.most_common(count)]
        return []

    def _range(self, wanted: np.ndarray) -> tuple[int, int]:
        """The suffixes that begin with these tokens."""
        low, high = 0, len(self.order)
        for depth, token in enumerate(wanted):  # among those that agree so far, the next tokens are sorted
            column = _Column(self.tokens, self.order[low:high], depth)
            low, high = low + column.before(int(token)), low + column.before(int(token) + 1)
            if low == high:
                break
        return low, high

    def save(self, path: str | Path) -> None:
        """Writes tokens and order to a safetensors file."""
        from safetensors.numpy import save_file

        metadata = {} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        with atomic_path(Path(path)) as file:
            save_file({"tokens": self.tokens, "order": self.order}, file, metadata=metadata)

    @staticmethod
    def load(path: str | Path) -> Datastore:
        """Reads what ``save`` wrote, or a datastore of REST (``.idx``) of one chunk.

        Raises:
            VistokError: it is no datastore.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        try:
            if path.suffix == ".idx":
                return Datastore(*_read_rest(path.read_bytes()))
            with safe_open(path, "numpy") as file:
                if set(file.keys()) != {"tokens", "order"}:
                    raise ValueError(f"it holds {', '.join(file.keys())}")
                found = Datastore(
                    file.get_tensor("tokens"), file.get_tensor("order"), (file.metadata() or {}).get("tokenizer")
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise VistokError(f"'{path}' is no datastore ({error}): name a file that Datastore.save wrote.") from None
        return found


class _Column:
    """The tokens at one depth of sorted suffixes that agree before it; a suffix that has ended counts as -1."""

    def __init__(self, tokens: np.ndarray, order: np.ndarray, depth: int):
        self.tokens, self.order, self.depth = tokens, order, depth

    def before(self, token: int) -> int:
        """How many are smaller than a token."""
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            at = int(self.order[middle]) + self.depth
            if (int(self.tokens[at]) if at < len(self.tokens) else -1) < token:
                low = middle + 1
            else:
                high = middle
        return low


def sorted_suffixes(tokens: np.ndarray) -> np.ndarray:
    """Where the suffixes of tokens [n] begin, sorted by their first ``DEPTH`` tokens, int32 [n]."""
    rank, width = tokens.astype(np.int64), 1
    while width < DEPTH:  # prefix doubling: a rank stands for twice as many tokens in every round
        behind = np.full_like(rank, -1)
        behind[:-width] = rank[width:]
        key = rank * (int(rank.max()) + 2) + behind + 1
        rank = np.unique(key, return_inverse=True)[1].astype(np.int64)
        width *= 2
    return np.argsort(rank, kind="stable").astype(np.int32)


def _read_rest(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and suffix array: each behind its size in bytes, as little-endian numbers of 32 bits."""
    parts, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data) or size % 4:
            raise ValueError("it ends within a part")
        parts.append(np.frombuffer(data, "<i4", size // 4, at + 4).astype(np.int32))
        at += 4 + size
    if len(parts) != 2 or len(parts[0]) != len(parts[1]):
        raise ValueError(f"it has {len(parts)} parts, not tokens and their suffixes")
    return parts[0], parts[1]


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256("\n".join(f"{number}\t{token}" for token, number in entries).encode()).hexdigest()
