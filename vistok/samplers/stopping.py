"""Where text ends, and who is told of it: stopping criteria and streamers of transformers in the draft-verify loop.

A step decides several tokens. Criteria are asked behind each of them in turn, as plain ``generate`` asks, and
everything behind the first that stops is cut. Streamers get each column of tokens as soon as all sequences have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.processors import decided_text, from_transformers
from vistok.samplers.run import Run

if TYPE_CHECKING:
    from transformers import StoppingCriteria, StoppingCriteriaList

BY_ROW = frozenset({"StopStringCriteria", "MaxTimeCriteria"})  # of transformers, functions of each row alone


class Limits(NamedTuple):
    """What ends a text, sorted by who sees to it.

    Attributes:
        length: columns of the longest text, prompt included; one token is new at the least, as in plain ``generate``.
        ends: end tokens, int64 [E]; None without.
        criteria: the others.
        one_by_one: a sequence that has ended is padded, as plain ``generate`` does where a criterion has end tokens.
    """

    length: int
    ends: Tensor | None
    criteria: list[StoppingCriteria]
    one_by_one: bool


def sort_criteria(criteria: StoppingCriteriaList, length: int, ids: Tensor) -> Limits:
    """Sort the stopping criteria of a call.

    Args:
        criteria: of the call, in which a ``MaxLengthCriteria`` of the caller has taken the place of ``generate``'s own.
        length: columns of the longest text, where no criterion says.
        ids: prompts, int64 [B, L].

    Raises:
        VistokError: a criterion that needs scores.
    """
    from transformers.generation import EosTokenCriteria, MaxLengthCriteria
    from transformers.generation.stopping_criteria import ConfidenceCriteria

    ends, lengths, rest = [], [], []
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            ends.append(criterion.eos_token_id.flatten().to(ids.device))
        elif type(criterion) is MaxLengthCriteria:
            lengths.append(criterion.max_length)
        elif isinstance(criterion, ConfidenceCriteria):
            raise VistokError("speculation keeps no scores, which ConfidenceCriteria stops by: leave it out.")
        else:
            rest.append(criterion)
    one_by_one = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    length = max(min(lengths, default=length), ids.shape[1] + 1)
    return Limits(length, torch.cat(ends) if ends else None, rest, one_by_one)


def as_criteria(stopping: Any, tokenizer: Any | None) -> list[StoppingCriteria]:
    """Stop strings and criteria, one or several, as criteria.

    Raises:
        VistokError: a string, and no tokenizer to find it with.
    """
    from transformers import StopStringCriteria

    given = [stopping] if isinstance(stopping, str) or callable(stopping) else list(stopping or ())
    strings = [one for one in given if isinstance(one, str)]
    criteria = [one for one in given if not isinstance(one, str)]
    if strings and tokenizer is None:
        raise VistokError(
            f"the stop string {strings[0]!r} is found with the model's tokenizer: pass tokenizer=... too."
        )
    return [*criteria, *([StopStringCriteria(tokenizer, strings)] if strings else [])]


class Stopping:
    """Criteria behind the loop's ``Stop``.

    Without end tokens, plain ``generate`` lets all sequences of a batch run until each has stopped once.

    Args:
        criteria: of transformers, or like them.
        prompt: ids, padded on the left, int64 [B, L].
        pad: stands behind the end of sequences.
        one_by_one: see ``Limits``.

    Attributes:
        together: some criterion must see the batch as plain decoding shows it.
    """

    def __init__(self, criteria: Sequence[StoppingCriteria], prompt: Tensor, pad: int, one_by_one: bool):
        self.criteria, self.prompt, self.pad = criteria, prompt, pad
        self.as_one = not one_by_one and len(prompt) > 1
        self.together = self.as_one or not all(from_transformers(one, BY_ROW) for one in criteria)
        self._stopped = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)

    def __call__(self, run: Run, emitted: Tensor, count: Tensor) -> Tensor:
        """Behind which of the new tokens [B, M] a sequence stops, bool [B, M]."""
        end = torch.zeros_like(emitted, dtype=torch.bool)
        text = decided_text(self.prompt, run, self.pad)
        start = self.prompt.shape[1] + run.decided
        going = run.decided < run.length
        if self.together:
            self._batch(end, text[:, : int(start[going][0])], going, emitted, int(count.max()))
            return end
        for row in going.nonzero()[:, 0].tolist():
            said = torch.cat([text[row, : start[row]], emitted[row]])
            for place in range(int(count[row])):
                if bool(self._asks(said[None, : int(start[row]) + place + 1])):
                    end[row, place] = True
                    break
        return end

    def _batch(self, end: Tensor, text: Tensor, going: Tensor, emitted: Tensor, count: int) -> None:
        over = ~going
        for place in range(count):
            token = emitted[:, place]
            text = torch.cat([text, (token if self.as_one else torch.where(over, self.pad, token))[:, None]], 1)
            hit = self._asks(text)
            if self.as_one:
                self._stopped |= hit
                end[:, place] = self._stopped.all()
            else:
                end[:, place] = hit & ~over
            over = over | end[:, place]
            if bool(over.all()):
                return

    def _asks(self, text: Tensor) -> Tensor:
        hit = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        for criterion in self.criteria:
            hit = hit | torch.as_tensor(criterion(text, None), device=text.device)
        return hit


class Streaming:
    """Hands decided tokens to a streamer of transformers, column by column as plain ``generate`` does.

    Args:
        streamer: has ``put``, for tokens [B] on the CPU.
        pad: stands behind the end of sequences.
    """

    def __init__(self, streamer: Any, pad: int):
        self.put: Callable[[Tensor], None] = streamer.put
        self.pad, self._handed = pad, 0

    def __call__(self, run: Run) -> None:
        """Hand on what every sequence has decided."""
        known = min(run.least, int(run.final.max()))
        if known <= self._handed:
            return
        places = torch.arange(self._handed, known, device=run.tokens.device)
        tokens = run.tokens[:, self._handed : known].masked_fill(places >= run.final[:, None], self.pad).cpu()
        self._handed = known
        for column in tokens.unbind(1):
            self.put(column)
