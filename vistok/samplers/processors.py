"""Logits processors of transformers in the draft-verify loop.

They are called along the path that a verifier takes, with real text only: the root first, then the child that was
drawn, and so on. A processor that is a function of each row's own text is called for the rows that ask; any other one
(it may remember, or look at the whole batch) gets exactly the calls of plain ``generate``: one a token, the whole
batch, texts of one length, for which all sequences of a batch decide equally many tokens in a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.samplers.constraints import Constrained
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run
from vistok.samplers.tree import TokenTree

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

# Those of transformers that are functions of each row's text and logits.
BY_ROW = frozenset(
    {
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "TemperatureLogitsWarper",
        "RepetitionPenaltyLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "TopPLogitsWarper",
        "TopKLogitsWarper",
        "TopHLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "NoRepeatNGramLogitsProcessor",
        "EncoderNoRepeatNGramLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "ExponentialDecayLengthPenalty",
        "LogitNormalization",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
    }
)


def from_transformers(thing: Any, names: Iterable[str]) -> bool:
    """Whether an object is of one of these classes of ``transformers.generation``, and of no subclass."""
    kind = type(thing)
    return kind.__name__ in names and kind.__module__.startswith("transformers.generation.")


def split_processors(processors: LogitsProcessorList, sampling: bool) -> tuple[SamplingParams, LogitsProcessorList]:
    """The sampling parameters that a list of processors ends with, and the processors before it.

    Temperature, top-k and top-p are taken over where they come last and in this order; whatever else stands behind them
    (min-p, say) keeps them among the processors.
    """
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if not sampling:
        return SamplingParams(greedy=True), processors
    rest, options = list(processors), {}
    for warper, name in (
        (TopPLogitsWarper, "top_p"),
        (TopKLogitsWarper, "top_k"),
        (TemperatureLogitsWarper, "temperature"),
    ):
        if rest and type(rest[-1]) is warper and _usual(rest[-1]):
            options[name] = getattr(rest.pop(), name)
    return SamplingParams(**options), LogitsProcessorList(rest)


def draw_seed(params: SamplingParams) -> int:
    """A seed for one call, drawn from torch's own generator; greedy decoding draws none."""
    return 0 if params.greedy else int(torch.randint(2**62, ()))


def _usual(warper: Any) -> bool:
    """Whether a warper does what its name says and no more; top-k holds its least number in ``top_k``."""
    least = getattr(warper, "min_tokens_to_keep", 1)
    return least == 1 and getattr(warper, "filter_value", -torch.inf) == -torch.inf


def decided_text(prompt: Tensor, run: Run, pad: int) -> Tensor:
    """Prompts and decided tokens [B, L + length], padded behind the end of sequences that have one."""
    behind = torch.arange(run.length, device=prompt.device) >= run.final[:, None]
    return torch.cat([prompt, run.tokens[:, : run.length].masked_fill(behind, pad)], 1)


class TextProcessing:
    """Processors behind the loop's ``Processing``.

    Args:
        processors: of transformers.
        prompt: ids, padded on the left, int64 [B, L].
        pad: stands behind the end of sequences.

    Attributes:
        together: some processor must see the batch as plain decoding shows it.
    """

    def __init__(self, processors: LogitsProcessorList, prompt: Tensor, pad: int):
        self.processors, self.prompt, self.pad = processors, prompt, pad
        by_row = all(isinstance(one, Constrained) or from_transformers(one, BY_ROW) for one in processors)
        self.together = not by_row

    def first(self, logits: Tensor) -> Tensor:
        """Processed logits [B, V] of the first tokens."""
        return self.processors(self.prompt, logits.float())

    def behind(self, run: Run, tree: TokenTree, node: Tensor, logits: Tensor) -> Tensor:
        """Processed logits behind one node of each tree; see ``Processing.behind``."""
        asked = node >= 0
        logits = logits.float()
        if not bool(asked.any()):
            return logits
        here, start = torch.arange(len(node), device=node.device), self.prompt.shape[1] - 1
        text = F.pad(decided_text(self.prompt, run, self.pad), (0, 1))
        depth = tree.shape.depth.expand(len(node), -1)
        on_path = tree.shape.ancestors.expand(len(node), -1, -1)[here, node] & asked[:, None]
        places = torch.where(on_path, start + run.decided[:, None] + depth, text.shape[1] - 1)
        text = text.scatter(1, places.clamp(max=text.shape[1] - 1), tree.tokens)
        size = start + run.decided + depth[here, node] + 1
        if self.together:
            return self.processors(text[:, : int(size[asked][0])], logits)
        processed = logits
        for width in size[asked].unique().tolist():
            rows = asked & (size == width)
            # Processors know rows by their number, so all are there; others than these hold the text of one of these.
            shown = torch.where(rows, here, int(rows.long().argmax()))
            found = self.processors(text[shown, :width], logits[shown])
            processed = torch.where(rows[:, None], found, processed)
        return processed
