"""Speculative decoding of a Hugging Face causal LM, through its own ``generate``.

``model.generate(**inputs, custom_generate=Speculation(TokenRecycling()))`` prepares its configuration, processors and
stopping criteria as always, then leaves decoding to the draft-verify loop. With greedy decoding the tokens are those of
plain ``generate``; with sampling they follow the same law, unless a lossy verifier was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.samplers.drafters.plain import Draw, NoDraft
from vistok.samplers.loop import Drafter, Verifier
from vistok.samplers.loop import generate as decode
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.stats import Stats
from vistok.samplers.targets.causal_lm import Prompt, TextTarget
from vistok.samplers.verifiers.candidates import exact_tree

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList
    from transformers.generation import GenerateDecoderOnlyOutput


class TextDrafter(Drafter, Protocol):
    """A drafter that is told the prompt before a run begins.

    Attributes:
        prompt_logits: it wants the target's logits behind every token of the prompt.
        features: it wants the target's final features, of the prompt and of every node.
    """

    prompt_logits: bool
    features: bool

    def bind(self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int) -> None:
        """Take the target's model, the prompts, the law and the number of new tokens of the coming run."""


@dataclass(frozen=True)
class TextOutput:
    """What was generated.

    Attributes:
        sequences: prompts and new tokens, padded behind a sequence's end, int64 [B, T].
        stats: of the run.
    """

    sequences: Tensor
    stats: Stats


def split_processors(processors: LogitsProcessorList, sampling: bool) -> tuple[SamplingParams, LogitsProcessorList]:
    """The sampling law that a list of processors ends with, and the processors before it.

    Temperature, top-k and top-p belong to the law where they come last and in this order; whatever else stands behind
    them (min-p, say) keeps them among the processors.
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
        if rest and type(rest[-1]) is warper:
            options[name] = getattr(rest.pop(), name)
    return SamplingParams(**options), LogitsProcessorList(rest)


class Speculation:
    """A decoding method for ``model.generate(custom_generate=...)``.

    Args:
        drafter: proposes token trees; plain decoding if None.
        verifier: judges them; by default the lossless one that suits the drafter.

    Attributes:
        stats: of the last call.
    """

    stats: Stats

    def __init__(self, drafter: TextDrafter | None = None, verifier: Verifier | None = None):
        self.drafter, self.verifier = drafter, verifier

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Decode; called by ``generate``.

        Raises:
            VistokError: the call asks for something that speculation cannot do.
        """
        _check(generation_config, model_kwargs)
        prompt = Prompt.of(input_ids, model_kwargs.get("attention_mask"))
        ends = _ends(stopping_criteria, input_ids.device)
        params, processors = split_processors(logits_processor, generation_config.do_sample)
        length = generation_config.max_length - input_ids.shape[1]
        drafter, verifier = NoDraft(), self.verifier
        if self.drafter is not None:
            drafter = self.drafter
            drafter.bind(model, prompt, params, length)
        if verifier is None:
            verifier = Draw() if self.drafter is None else exact_tree(drafter.kind)
        wants = {} if self.drafter is None else {name: getattr(drafter, name) for name in ("prompt_logits", "features")}
        target = TextTarget(model, prompt, length, drafter.nodes, processors or None, **wants)
        seed = 0 if params.greedy else int(torch.randint(2**62, ()))
        noise = Noise(seed, torch.arange(len(input_ids), device=input_ids.device))
        tokens, self.stats = decode(target, drafter, verifier, params, noise, ends=ends)
        longest = int(self.stats.lengths.max())
        behind = torch.arange(length) >= self.stats.lengths[:, None]
        if bool(behind.any()):
            pad = generation_config.pad_token_id
            tokens = tokens.masked_fill(behind.to(tokens.device), int(ends[0]) if pad is None else pad)
        sequences = torch.cat([input_ids, tokens[:, :longest]], 1)
        if generation_config.return_dict_in_generate:
            from transformers.generation import GenerateDecoderOnlyOutput

            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences


def _check(config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Raise VistokError if a call of ``generate`` asks for what speculation cannot do."""
    if config.num_beams > 1:
        raise VistokError(f"speculation decodes one sequence a prompt, not {config.num_beams} beams: set num_beams=1.")
    if model_kwargs.get("inputs_embeds") is not None:
        raise VistokError("speculation needs the prompt's tokens: pass input_ids instead of inputs_embeds.")
    cache = given_cache(model_kwargs)
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise VistokError("speculation keeps a cache of its own: pass the whole prompt and no past_key_values.")
    wanted = [name for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
              if getattr(config, name)]  # fmt: skip
    if wanted and config.return_dict_in_generate:
        raise VistokError(f"speculation does not return what {wanted[0]} asks for: leave it out.")


def _ends(criteria: StoppingCriteriaList, device: torch.device) -> Tensor | None:
    """The tokens that end a sequence, of all stopping criteria.

    Raises:
        VistokError: a criterion that is neither a length nor an end token.
    """
    from transformers.generation import EosTokenCriteria, MaxLengthCriteria

    found = []
    for criterion in criteria:
        if isinstance(criterion, EosTokenCriteria):
            found.append(criterion.eos_token_id.flatten().to(device))
        elif not isinstance(criterion, MaxLengthCriteria):
            raise VistokError(
                f"speculation stops at end tokens and lengths, not by {type(criterion).__name__}: leave it out."
            )
    return torch.cat(found) if found else None


def generate(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    drafter: TextDrafter | None = None,
    verifier: Verifier | None = None,
    **options: Any,
) -> TextOutput:
    """``model.generate`` with speculation, and what it did.

    Args:
        model: a causal LM loaded by transformers.
        inputs: prompt ids [B, L], or what its tokenizer returned.
        drafter, verifier: see ``Speculation``.
        options: of ``model.generate``, e.g. ``max_new_tokens`` and ``do_sample``.

    Raises:
        VistokError: drafter and verifier do not go together, or the model or a prompt does not fit.
    """
    speculation = Speculation(drafter, verifier)
    inputs = {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    sequences = model.generate(**inputs, **options, return_dict_in_generate=False, custom_generate=speculation)
    return TextOutput(sequences, speculation.stats)
