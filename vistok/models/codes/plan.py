"""What stands where in the tokens of a picture: codes in raster order, and tokens that a layout forces among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError

ANY = -1  # a place where any code may stand


@dataclass(frozen=True, eq=False)
class PicturePlan:
    """The tokens of a picture.

    An alphabet has the K codes in the order of the codebook, then S special tokens. Samplers draw its entries.

    Attributes:
        ids: token ids of the alphabet, int64 [K + S].
        special: S.
        places: the entry that stands at each place, ``ANY`` for any code, int64 [n].
        line: tokens of a row of the picture, its end included.
    """

    ids: Tensor
    special: int
    places: Tensor
    line: int

    @staticmethod
    def raster(codes: Tensor, rows: int, columns: int, line_end: int | None = None, behind: Sequence[int] = ()):
        """Returns the plan of a grid.

        Args:
            codes: token ids of the codes in the order of the codebook, int64 [K].
            rows, columns: of the grid.
            line_end: token behind each row, if there is one.
            behind: tokens behind the picture.
        """
        row = [ANY] * columns + ([] if line_end is None else [line_end])
        return PicturePlan.of_tokens(codes, row * rows + list(behind), len(row))

    @staticmethod
    def of_tokens(codes: Tensor, tokens: Sequence[int], line: int) -> PicturePlan:
        """Returns the plan of a sequence of token ids, ``ANY`` where any code may stand."""
        special = list(dict.fromkeys(token for token in tokens if token != ANY))
        entry = {token: len(codes) + i for i, token in enumerate(special)} | {ANY: ANY}
        places = torch.tensor([entry[token] for token in tokens], device=codes.device)
        return PicturePlan(torch.cat([codes, codes.new_tensor(special)]), len(special), places, line)

    @staticmethod
    def of_function(
        codes: Tensor,
        allowed: Callable[[int, Tensor], Sequence[int]],
        prompt: Tensor,
        row: int,
        length: int,
        ends: Collection[int] = (),
    ) -> PicturePlan:
        """Returns the plan that a ``prefix_allowed_tokens_fn`` of transformers enforces.

        It is asked once for each place, behind a picture whose codes are all the first one.

        Args:
            codes: token ids of the codes, int64 [K].
            allowed: number of a row of the batch and its tokens so far, int64 [L], to the token ids that may follow.
            prompt: of that row, int64 [L], as it is given to ``generate``.
            row: its number.
            length: most new tokens.
            ends: tokens that end a text.

        Raises:
            VistokError: at some place it allows neither all codes nor one single token.
        """
        every, tokens = set(codes.tolist()), []
        text = torch.cat([prompt, prompt.new_full((length,), int(codes[0]))])
        seen: dict[int, tuple[Sequence[int], set[int]]] = {}  # lists that come again are read once
        while len(tokens) < length and (not tokens or tokens[-1] not in ends):
            place = len(prompt) + len(tokens)
            found = allowed(row, text[:place])
            if id(found) not in seen:
                seen[id(found)] = found, {int(token) for token in found}
            choices = seen[id(found)][1]
            if choices != every and len(choices) != 1:
                raise VistokError(
                    f"prefix_allowed_tokens_fn allows {len(choices)} tokens at place {len(tokens)} of the picture: it "
                    f"must allow the {len(every)} image tokens there, or one single token."
                )
            tokens.append(ANY if choices == every else next(iter(choices)))
            if tokens[-1] != ANY:
                text[place] = tokens[-1]
        return PicturePlan.of_tokens(codes, tokens, line_of(tokens))

    @property
    def codes(self) -> int:
        """Codes K."""
        return len(self.ids) - self.special

    @property
    def free(self) -> Tensor:
        """Where codes stand, bool [n]."""
        return self.places == ANY

    @property
    def columns(self) -> int:
        """Codes of a row."""
        return int(self.free[: self.line].sum())

    def same(self, other: PicturePlan) -> bool:
        """Whether two plans lay out the same tokens."""
        return torch.equal(self.ids, other.ids) and torch.equal(self.places, other.places) and self.line == other.line

    def kept(self, length: int) -> PicturePlan:
        """Returns the first ``length`` places of the plan."""
        return PicturePlan(self.ids, self.special, self.places[:length], self.line)

    def grid(self, drawn: Tensor) -> Tensor:
        """Returns the codes of whole pictures [B, h, w] among drawn entries [B, n]."""
        return drawn[:, self.free].unflatten(1, (-1, self.columns))

    def to(self, device: torch.device | str) -> PicturePlan:
        """Returns the plan on another device."""
        return PicturePlan(self.ids.to(device), self.special, self.places.to(device), self.line)


def line_of(tokens: Sequence[int]) -> int:
    """Tokens of a row: up to the first token that is forced behind codes again and again, else the square's side."""
    forced = [place for place, token in enumerate(tokens) if token != ANY]
    if len(forced) > 1 and tokens[forced[0]] == tokens[forced[1]]:
        return forced[1] - forced[0]
    codes = len(tokens) - len(forced)
    return max(1, round(codes**0.5))
