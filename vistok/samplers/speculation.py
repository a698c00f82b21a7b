"""Speculative decoding of a Hugging Face causal LM, through its own ``generate``.

``model.generate(**inputs, custom_generate=Speculation(TokenRecycling()))`` prepares its configuration, processors and
stopping criteria as always, then leaves decoding to the draft-verify loop. With greedy decoding the tokens are those of
plain ``generate``; with sampling they follow the same law, unless a lossy verifier was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.arguments import check_arguments, given_to_generate, whole_options
from vistok.samplers.drafters.text import TextDrafter, Undrafted
from vistok.samplers.loop import Verifier, decode
from vistok.samplers.noise import Noise
from vistok.samplers.processors import TextProcessing, draw_seed, split_processors
from vistok.samplers.stats import Stats
from vistok.samplers.stopping import Stopping, Streaming, as_criteria, sort_criteria
from vistok.samplers.targets.causal_lm import Prompt, TextTarget
from vistok.samplers.targets.pictures import PictureTarget, reads_pictures, text_of
from vistok.samplers.targets.support import check_model
from vistok.samplers.verifiers.candidates import exact_tree
from vistok.samplers.verifiers.draw import Draw

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList
    from transformers.generation import GenerateDecoderOnlyOutput


@dataclass(frozen=True)
class TextOutput:
    """What was generated.

    Attributes:
        sequences: prompts and new tokens, padded behind a sequence's end, int64 [B, T].
        stats: of the run.
    """

    sequences: Tensor
    stats: Stats


class Speculation:
    """A decoding method for ``model.generate(custom_generate=...)``.

    Args:
        drafter: proposes token trees; plain decoding if None.
        verifier: judges them; by default the lossless one that suits the drafter.
        streamer: of transformers; is given the prompt and each decided token, and is ended.
        tokenizer: the model's, for stop strings, and for drafters that compare it with their own.
        stopping: stop strings and stopping criteria of transformers, one or several, beside those of ``generate``.

    Raises:
        VistokError: what is given as drafter is none.

    Attributes:
        stats: of the last call.
    """

    stats: Stats

    def __init__(
        self,
        drafter: TextDrafter | None = None,
        verifier: Verifier | None = None,
        *,
        streamer: Any | None = None,
        tokenizer: Any | None = None,
        stopping: Any | None = None,
    ):
        if drafter is not None and (isinstance(drafter, type) or not hasattr(drafter, "bind")):
            raise VistokError(f"a drafter is an object such as PromptLookup(), got {drafter!r}: make one.")
        self.drafter, self.verifier = drafter, verifier
        self.streamer, self.tokenizer, self.stopping = streamer, tokenizer, stopping

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

        Returns:
            Prompts and new tokens, padded behind a sequence's end, int64 [B, T]; with ``return_dict_in_generate`` an
            output that holds them alone, without a cache.

        Raises:
            VistokError: the call asks for something that speculation cannot do.
        """
        input_ids = input_ids.long()  # plain generate takes 32 bits too
        given = given_to_generate()
        streamer = given.get("streamer")
        if streamer is None and self.streamer is not None:
            streamer = self.streamer
            streamer.put(input_ids.cpu())
        try:
            check_model(model, input_ids.shape[1])  # before anything is asked of its cache
            check_arguments(generation_config, model_kwargs, input_ids, given, reads_pictures(model))
            criteria = [*stopping_criteria, *as_criteria(self.stopping, self.tokenizer)]
            prompt = Prompt.of(input_ids, model_kwargs.get("attention_mask"))
            inputs = model_kwargs if reads_pictures(model) else None
            sequences = self._decode(model, prompt, inputs, logits_processor, criteria, generation_config, streamer)
        finally:
            if streamer is not None:  # a refusal must not leave its reader waiting
                streamer.end()
        if generation_config.return_dict_in_generate:
            from transformers.generation import GenerateDecoderOnlyOutput

            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

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
        ids = prompt.ids
        limits = sort_criteria(criteria, config.max_length, ids)
        length = limits.length - ids.shape[1]
        pad = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)  # as generate has settled it
        params, processors = split_processors(processors, config.do_sample)
        processing = TextProcessing(processors, ids, pad) if processors else None
        stop = Stopping(limits.criteria, ids, pad, limits.one_by_one) if limits.criteria else None
        drafter = Undrafted() if self.drafter is None else self.drafter
        words = prompt if inputs is None or drafter.features else text_of(model, prompt)
        drafter.bind(model, words, params, length, self.tokenizer)
        verifier = self.verifier or (Draw() if self.drafter is None else exact_tree(drafter.kind))
        reader = drafter.read if drafter.reads_prompt else None
        features = drafter.features or getattr(verifier, "features", False)
        wanted = (model, prompt, length, drafter.nodes, features, reader)
        target = TextTarget(*wanted) if inputs is None else PictureTarget(*wanted, inputs)
        seed = draw_seed(params)
        tokens, self.stats = decode(
            target,
            drafter,
            verifier,
            params,
            Noise(seed, torch.arange(len(ids), device=ids.device)),
            ends=limits.ends,
            processing=processing,
            stop=stop,
            together=any(part is not None and part.together for part in (processing, stop)),
            watch=None if streamer is None else Streaming(streamer, pad),
        )
        lengths = self.stats.lengths.to(tokens.device)
        behind = torch.arange(length, device=tokens.device) >= lengths[:, None]
        return torch.cat([ids, tokens.masked_fill(behind, pad)[:, : int(lengths.max())]], 1)


def generate(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    drafter: TextDrafter | None = None,
    verifier: Verifier | None = None,
    *,
    streamer: Any | None = None,
    tokenizer: Any | None = None,
    stopping: Any | None = None,
    **options: Any,
) -> TextOutput:
    """``model.generate`` with speculation, and what it did.

    Args:
        model: a causal LM loaded by transformers.
        inputs: prompt ids [B, L], or what its tokenizer returned.
        drafter, verifier, streamer, tokenizer, stopping: see ``Speculation``.
        options: of ``model.generate``, e.g. ``max_new_tokens``, ``do_sample`` and ``stop_strings``; a ``temperature``
            of 0 decodes greedily.

    Raises:
        VistokError: drafter and verifier do not go together, the model or a prompt does not fit, or an option is not
            understood.
    """
    if not isinstance(inputs, (Tensor, Mapping)):
        raise VistokError(
            f"inputs are what the model's tokenizer returns with return_tensors='pt', or ids [B, L], got "
            f"{type(inputs).__name__}: tokenize the text first."
        )
    if options.get("assistant_tokenizer") is not None:  # which transformers would drop
        raise VistokError(
            "assistant_tokenizer is for transformers' own assisted decoding: leave it out, or use DraftModel."
        )
    if options.get("temperature") == 0:
        options = {name: value for name, value in options.items() if name != "temperature"} | {"do_sample": False}
    options = whole_options(model, options.get("generation_config"), options, tokenizer)
    speculation = Speculation(drafter, verifier, tokenizer=tokenizer, stopping=stopping)
    if streamer is not None:  # through the model's own generate, where a compressor shows it the whole prompts
        options = options | {"streamer": streamer}
    inputs = {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    sequences = model.generate(**inputs, **options, return_dict_in_generate=False, custom_generate=speculation)
    return TextOutput(sequences, speculation.stats)
