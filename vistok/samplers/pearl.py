"""PEARL (arXiv 2408.11850): draft model and target run at the same time, each on an executor of its own.

Every round the draft model writes ``gamma`` tokens while the target runs one forward. With nothing pending the target
judges the first of them before the others are there (pre-verify); with ``gamma`` tokens pending it judges those, and
the draft model is already further on (post-verify). There is no bonus token. Against the published code: the pending
tail is verified before it is returned, ids are integers throughout, and every draw has a uniform of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops.sampling import residual_law
from vistok.samplers.draft_process import DraftProcess
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.parallel import CachedSide, Side, executors, forecast
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import Chain
from vistok.samplers.processors import draw_seed, split_processors
from vistok.samplers.speculation import Speculation
from vistok.samplers.stopping import sort_criteria
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.pictures import reads_pictures


@dataclass
class Counts:
    """What a run did.

    Attributes:
        draft_forwards, target_forwards: calls in rounds; the verification of the tail is ``tail_forwards``.
        accepted: drafted tokens that were accepted between two rejections; an open stretch is left out.
    """

    draft_forwards: int = 0
    target_forwards: int = 0
    tail_forwards: int = 0
    accepted: list[int] = field(default_factory=list)


def interleave(
    target: Side,
    draft: Side,
    text: Tensor,
    length: int,
    gamma: int,
    draw: Callable[[Tensor], Tensor],
    uniform: Callable[[], float],
    together: Callable[[Callable[[], Any], Callable[[], Any]], tuple[Any, Any]] | None = None,
    ended: Callable[[Tensor], bool] = lambda text: False,
) -> tuple[Tensor, Tensor, Counts]:
    """Decodes one text in rounds.

    Args:
        target, draft: the models; each is called from one executor at a time.
        text: the prompt, int64 [n].
        length: tokens of prompt and continuation.
        gamma: tokens that are drafted in a round, at least 2.
        draw: a law [V] to a token, int64 [1].
        uniform: the next uniform of an acceptance.
        together: runs two functions at the same time and returns what both gave; one after the other if None.
        ended: whether verified tokens behind the prompt hold an end.

    Returns:
        The text with its tail verified; the text as it stood when the rounds ended, whose last ``gamma - 1`` tokens may
        be unverified; and counts.

    Raises:
        VistokError: fewer than two drafts a round.
    """
    if gamma < 2:
        raise VistokError(f"PEARL drafts at least 2 tokens a round, got {gamma}.")
    together = together or (lambda first, second: (first(), second()))
    start, counts, run = len(text), Counts(), 0
    pending: list[Tensor] = []  # draft laws of the last gamma tokens, in post-verify

    def write(text: Tensor) -> tuple[Tensor, list[Tensor]]:
        laws = []
        for _ in range(gamma):
            laws.append(draft.laws(text, 1)[0])
            text = torch.cat([text, draw(laws[-1])])
        return text, laws

    def judge(laws: Tensor, guesses: list[Tensor], tokens: Tensor) -> tuple[int, Tensor | None]:
        """Accepted tokens, and what stands in place of the first that was not."""
        for place, token in enumerate(tokens.tolist()):
            p, q = laws[place], guesses[place]
            if uniform() * float(q[token]) > float(p[token]):
                return place, draw(residual_law(p[None], q[None])[0])
        return len(tokens), None

    while len(text) < length and not ended(text[start : len(text) - max(0, len(pending) - 1)]):
        rows, base = (gamma if pending else 1), text
        laws, (longer, guesses) = together(
            lambda base=base, rows=rows: target.laws(base, rows), lambda base=base: write(base)
        )
        counts.target_forwards, counts.draft_forwards = counts.target_forwards + 1, counts.draft_forwards + gamma
        known = len(text) - rows + 1  # tokens that are verified already
        kept, other = judge(laws, [*pending[1:], guesses[0]], longer[known : known + rows])
        if other is None:
            run, text, pending = run + kept, longer, guesses
            continue
        counts.accepted.append(run + kept)
        run, text, pending = 0, torch.cat([longer[: known + kept], other]), []
    raw = text
    if pending:  # its first token is verified
        laws = target.laws(text, gamma)[: gamma - 1]
        counts.tail_forwards += 1
        known = len(text) - gamma + 1
        kept, other = judge(laws, pending[1:], text[known:])
        text = text if other is None else torch.cat([text[: known + kept], other])
    return text, raw, counts


class Pearl(Speculation):
    """PEARL for ``model.generate(custom_generate=...)``: one prompt, greedy or sampled, lossless.

    What PEARL's rounds do not know (batches, pictures, processors, stopping criteria, streamers) and machines on which
    they cannot win are decoded draft-then-verify with the same draft model; ``told`` says why.

    Args:
        draft: a small model with the target's tokenizer.
        gamma: tokens that are drafted in a round.
        force: run the rounds even where the forecast speaks against them.
        processes: the draft model runs in a process of its own, which starts with the first call and ends with this
            object; else both run in threads of this one.
        tokenizer, streamer, stopping: see ``Speculation``.

    Attributes:
        told: why the last call was not decoded in parallel; None if it was.
        counts: of the last parallel call.
    """

    def __init__(
        self, draft: nn.Module, gamma: int = 4, *, force: bool = False, processes: bool = False, **options: Any
    ):
        super().__init__(DraftModel(draft, Chain(gamma)), **options)
        if gamma < 2:
            raise VistokError(f"PEARL drafts at least 2 tokens a round, got {gamma}.")
        self.draft, self.gamma, self.force, self.processes = draft, gamma, force, processes
        self._process: DraftProcess | None = None
        self.told: str | None = None
        self.counts = Counts()

    def _decode(
        self,
        model: nn.Module,
        prompt: Prompt,
        inputs: Mapping[str, Any] | None,
        processors: Any,
        criteria: Any,
        config: Any,
        streamer: Any | None,
    ) -> Tensor:
        limits = sort_criteria(criteria, config.max_length, prompt.ids)
        params, rest = split_processors(processors, config.do_sample)
        self.told = self._against(model, prompt, rest, limits.criteria, streamer)
        if self.told is not None:
            warnings.warn(f"PEARL decodes draft-then-verify: {self.told}.", stacklevel=2)
            return super()._decode(model, prompt, inputs, processors, criteria, config, streamer)
        self.drafter.bind(model, prompt, params, limits.length - prompt.ids.shape[1], self.tokenizer)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(draw_seed(params))

        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        def draw(law: Tensor) -> Tensor:
            if params.greedy:
                return law.argmax(-1, keepdim=True)
            return torch.multinomial(law.cpu(), 1, generator=generator).to(law.device)

        def ended(new: Tensor) -> bool:
            return limits.ends is not None and bool(torch.isin(new, limits.ends).any())

        text = prompt.flush[0, : int(prompt.count)]
        length = len(text) + limits.length - prompt.ids.shape[1]
        sides = self._sides(model, params, length + 2 * self.gamma, vocabulary)
        with executors(text.device) as together:
            found, _, self.counts = interleave(*sides, text, length, self.gamma, draw, uniform, together, ended)
        new = found[len(text) : length]
        if limits.ends is not None:
            ends = torch.isin(new, limits.ends).nonzero()
            new = new if not len(ends) else new[: int(ends[0]) + 1]
        return torch.cat([prompt.ids[0], new])[None]

    def _sides(self, model: nn.Module, params: SamplingParams, length: int, vocabulary: int) -> list[Side]:
        """Both models, with empty caches."""
        target = CachedSide(model, params, length, vocabulary)
        if not self.processes:
            return [target, CachedSide(self.draft, params, length, vocabulary)]
        if self._process is None:
            self._process = DraftProcess(self.draft)
        return [target, self._process.begin(params, length, vocabulary)]

    def _against(self, model: nn.Module, prompt: Prompt, processors: Any, criteria: Any, streamer: Any) -> str | None:
        if len(prompt.ids) > 1:
            return "its rounds decode one prompt at a time"
        if reads_pictures(model) or processors or criteria or streamer is not None:
            return "its rounds know no pictures, processors, criteria or streamers"
        sizes = [each.get_output_embeddings().weight.shape[0] for each in (model, self.draft)]
        if sizes[0] != sizes[1]:
            return "the two vocabularies are padded differently"
        if self.force:
            return None
        seen = forecast(model, self.draft, self.gamma, sides=self._sides(model, SamplingParams(greedy=True), 64, 1))
        best = min(seen.plain, seen.serial)
        if seen.parallel < best:
            return None
        return (
            f"both models at once would take {1e3 * seen.parallel:.1f} ms a token on this machine, where "
            f"{'plain decoding' if best == seen.plain else 'one after the other'} takes {1e3 * best:.1f} ms"
        )
