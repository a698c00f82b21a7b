"""Needles in a text: lines ``# code NAME VALUE`` strewn into passages of a corpus, and asked for later.

Names and values are plain words, drawn anew for every passage, so that the answer stands nowhere but in the passage. A
question is the line up to its name, and the answer is the value: a model that finds it reads back to where the name
stood before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.errors import VistokError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LINE = "\n# code"
# Each is one token of text-mini's tokenizer.
_WORDS = """
address binary block body buffer cache case child chunk class client code color column command cookie copy date
default dictionary digits directory display document domain element email entry error event exact example extension
feature field file filter final float format frame from function future group handler header host import index
instance integer interface item keyword length level line link list local lock logger loop main manager mark master
match member memory message method mode module month name node normal number object offset option order original
output package pair parent part path pattern pipe place platform point policy port position prefix present process
protocol proxy queue quote random range record register regular request resource response result root same screen
script search second section sequence server signal size socket source space split stack standard start state stream
string suffix syntax system table target task test text thread time token transport tree tuple turtle type user value
variable version week widget width wrapper write year zero
"""
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Needle:
    """One line of a passage.

    Attributes:
        question: tokens that ask for it, int64 [Q].
        answer: tokens of its value, int64 [A].
        start: place of the line's first token.
    """

    question: Tensor
    answer: Tensor
    start: int


class NeedleText:
    """Passages of a corpus with needles, in the tokens of one tokenizer.

    Args:
        tokenizer: of the model that is asked.
        corpus: its texts, or their tokens, int64 [n].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, corpus: Sequence[str] | Tensor) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, verbose=False).input_ids

        head = encode(LINE)
        lines = {word: encode(f"{LINE} {word}") for word in WORDS}
        # A tokenizer may join what stands side by side; words of which it keeps the seams serve both as name and value.
        self._words = [line[len(head) :] for line in lines.values() if line[: len(head)] == head]
        self._head, self._end = head, encode("\n")
        first = tokenizer("").input_ids
        self._begin = [token for token in first if token == tokenizer.bos_token_id]
        if not isinstance(corpus, Tensor):
            corpus = torch.cat([torch.tensor(encode(text), dtype=torch.int64) for text in corpus])
        self.tokens = corpus

    def passage(
        self, length: int, needles: int, generator: torch.Generator, within: float = 1.0
    ) -> tuple[Tensor, list[Needle]]:
        """A passage with one needle in each of as many parts of equal length.

        Args:
            length: tokens of the passage, needles included.
            needles: how many.
            generator: of the passage, the words and their places.
            within: share of the passage, from its beginning on, that has these parts.

        Returns:
            int64 [length], and the needles by depth.

        Raises:
            VistokError: the needles do not fit.
        """
        pairs = self._pairs(needles, generator)
        lines = [self._head + name + value + self._end for name, value in pairs]
        room = self._room(length, lines)
        at = (torch.arange(needles) + torch.rand(needles, generator=generator)) / needles
        ids, starts = self._strewn(lines, (within * at * room).long().tolist(), room, generator)
        found = [
            Needle(torch.tensor(self._head + name), torch.tensor(value), start)
            for (name, value), start in zip(pairs, starts, strict=True)
        ]
        return ids, found

    def lesson(self, length: int, names: int, times: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A passage in which each needle stands several times, anywhere.

        Args:
            length: tokens of the passage.
            names: different needles.
            times: how often each of them stands there.
            generator: of all that is drawn.

        Returns:
            int64 [length], and where a token stands whose next one is the value of a needle that stood before, int64
            [names * (times - 1)].

        Raises:
            VistokError: the needles do not fit, or a value is not one token.
        """
        pairs = self._pairs(names, generator)
        if any(len(value) != 1 for _, value in pairs):
            raise VistokError("the tokenizer cuts the needles' words: lessons need a token for each.")
        order = torch.randperm(names * times, generator=generator) % names
        lines = [self._head + pairs[number][0] + pairs[number][1] + self._end for number in order.tolist()]
        room = self._room(length, lines)
        at = torch.randint(room + 1, (len(lines),), generator=generator).sort().values
        ids, starts = self._strewn(lines, at.tolist(), room, generator)
        seen: set[int] = set()
        places = []
        for number, start in zip(order.tolist(), starts, strict=True):
            if number in seen:
                places.append(start + len(self._head) + len(pairs[number][0]) - 1)
            seen.add(number)
        return ids, torch.tensor(places)

    def _pairs(self, count: int, generator: torch.Generator) -> list[tuple[list[int], list[int]]]:
        if 2 * count > len(self._words):
            raise VistokError(f"there are words for {len(self._words) // 2} needles, not for {count}: ask for fewer.")
        drawn = torch.randperm(len(self._words), generator=generator)[: 2 * count].tolist()
        words = [self._words[number] for number in drawn]
        return list(zip(words[::2], words[1::2], strict=True))

    def _room(self, length: int, lines: list[list[int]]) -> int:
        """Tokens of a passage that are the corpus's."""
        room = length - len(self._begin) - sum(map(len, lines))
        if room < 0 or room >= len(self.tokens):
            raise VistokError(
                f"{len(lines)} needles do not fit into {length} tokens of a corpus of {len(self.tokens)}: change the "
                "length, or ask for fewer."
            )
        return room

    def _strewn(
        self, lines: list[list[int]], cuts: list[int], room: int, generator: torch.Generator
    ) -> tuple[Tensor, list[int]]:
        """A passage with lines at cuts in ascending order, and where they begin."""
        start = int(torch.randint(len(self.tokens) - room, (1,), generator=generator))
        body = self.tokens[start : start + room].tolist()
        ids, starts, last = list(self._begin), [], 0
        for line, cut in zip(lines, cuts, strict=True):
            ids += body[last:cut]
            starts.append(len(ids))
            ids += line
            last = cut
        return torch.tensor(ids + body[last:]), starts
