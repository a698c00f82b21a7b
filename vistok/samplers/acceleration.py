"""``vistok.accelerate``: a model's own ``generate`` with a sampler of this package inside, until it is removed.

On image generators of transformers (Janus, Emu3, Chameleon and its descendants) a call of ``generate`` that asks for a
picture is read as transformers reads it, and decoded by the draft-verify loop: the same call, the same law, fewer
forwards. Calls for text go through as they are. On causal LMs the sampler is what ``custom_generate`` takes. A LlamaGen
gets a ``generate`` of the same form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.attach import Attachment, unwrapped
from vistok.models.codes.families import CODE_GENERATORS
from vistok.models.codes.generator import Call, CodeGenerator, PromptCondition
from vistok.models.interface import Condition
from vistok.samplers.arguments import check_arguments, whole_options
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.interface import AutoregressiveSampler
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.processors import draw_seed, split_processors
from vistok.samplers.speculation import Speculation
from vistok.samplers.stats import Stats

# Arguments of ``generate`` that are no option and mean nothing for a picture, with what to do instead.
REFUSED = {
    "logits_processor": "it would read codes of a picture as tokens of a text: leave it out",
    "stopping_criteria": "a picture has as many tokens as its layout: leave it out",
    "streamer": "a picture is no text to stream: leave it out",
    "assistant_model": "the sampler drafts itself: leave it out",
    "custom_generate": "the model is accelerated already: leave it out, or remove() that first",
    "synced_gpus": "processes take different numbers of steps: leave it out",
}


class Acceleration(Attachment):
    """A sampler at work in a model's ``generate``.

    Attributes:
        sampler: of pictures.
        stats: of the last picture or text; None before the first.
    """

    slot: ClassVar[str] = "sampler"
    sampler: AutoregressiveSampler
    stats: Stats | None = None

    _generator: nn.Module | None = None
    _prepared: AutoregressiveSampler | None = None

    def _run(self, generator: nn.Module, condition: Any, params: SamplingParams) -> Tensor:
        """Drawn tokens [B, n]; the seed is drawn from torch's own. What a sampler prepares serves the next call too."""
        before = self._generator
        if isinstance(generator, CodeGenerator) and before is not None and before.plan.same(generator.plan):
            generator = before
        if generator is not before:
            self._generator, self._prepared = generator, self.sampler.prepare(generator)
        seed = draw_seed(params)
        noise = Noise(seed, torch.arange(len(condition), device=next(generator.parameters()).device))
        tokens, self.stats = self._prepared.sample(generator, condition, params, noise)
        return tokens


class PictureAcceleration(Acceleration):
    """A sampler in the ``generate`` of an image generator of transformers.

    Args:
        model: the generator.
        sampler: one of the draft-verify loop.
    """

    def __init__(self, model: nn.Module, sampler: AutoregressiveSampler):
        self.sampler, self.family = sampler, CODE_GENERATORS[model.config.model_type]
        self.family.code_ids(model)  # a vocabulary without image tokens is refused before anything is attached
        super().__init__(model)

    @torch.no_grad()
    def generate(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Draws a picture, where the call asks for one.

        Raises:
            VistokError: the call asks for what the sampler does not do.
        """
        arguments = dict(inspect.signature(plain).bind_partial(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        arguments.pop("self", None)
        ids = arguments.pop("inputs", None)
        ids = arguments.pop("input_ids", None) if ids is None else ids
        if ids is None or not self.family.asks(self.model, arguments, ids):
            return plain(*args, **kwargs)
        call, params, config = self._read(ids, arguments)
        generator = self.family.of_call(self.model, call)
        drawn = self._run(generator, call.condition, params)
        if not self.family.with_prompt:
            sequences = drawn
        else:
            sequences = torch.cat([call.condition.ids, generator.plan.ids[drawn]], 1)
        if config.return_dict_in_generate:
            from transformers.generation import GenerateDecoderOnlyOutput

            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _read(self, ids: Tensor, arguments: dict[str, Any]) -> tuple[Call, SamplingParams, Any]:
        model = self.model
        for name, reason in REFUSED.items():
            if arguments.pop(name, None):
                raise VistokError(f"{name} cannot be heeded while a sampler draws a picture, as {reason}.")
        if model.training:
            raise VistokError("the model is in training mode, where dropout changes what it draws: call model.eval().")
        own = {key: arguments.pop(key, None) for key in ("generation_mode", "prefix_allowed_tokens_fn")}
        negative = arguments.pop("negative_prompt_ids", None), arguments.pop("negative_prompt_attention_mask", None)
        arguments.pop("image_sizes", None)  # of Emu3's processor; the prompt says the same
        mask = arguments.pop("attention_mask", None)
        given = arguments.pop("generation_config", None)
        longest = _first(
            arguments.get("max_length"), getattr(given, "max_length", None), model.generation_config.max_length
        )
        config, left = model._prepare_generation_config(given, **arguments)
        check_arguments(config, left, ids, {})
        for name in ("stop_strings", "max_time"):
            if getattr(config, name, None) is not None:
                raise VistokError(
                    f"a picture has as many tokens as its layout and stops nowhere else: leave {name} out."
                )
        limit = _first(config.max_new_tokens, None if longest is None else max(1, longest - ids.shape[1]))
        copies = config.num_return_sequences or 1
        ids, mask = (None if x is None else x.repeat_interleave(copies, 0) for x in (ids, mask))
        negative = tuple(
            x.repeat_interleave(copies, 0) if x is not None and 1 < len(x) * copies == len(ids) else x for x in negative
        )
        condition = PromptCondition(ids, mask, *negative)
        ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
        call = Call(condition, own, limit, frozenset(int(e) for e in ends if e is not None), config)
        return call, self._params(config, ids), config

    def _params(self, config: Any, ids: Tensor) -> SamplingParams:
        """Sampling parameters of a generation config.

        Raises:
            VistokError: it asks for another change of logits.
        """
        from transformers import LogitsProcessorList

        guidance, config.guidance_scale = self.family.guidance(config), None
        self.model._prepare_special_tokens(config, True, device=ids.device)
        processors = self.model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=ids.shape[1],
            encoder_input_ids=ids,
            prefix_allowed_tokens_fn=None,
            logits_processor=LogitsProcessorList(),
            device=ids.device,
        )
        params, others = split_processors(processors, config.do_sample)
        if others:
            names = ", ".join(type(one).__name__ for one in others)
            raise VistokError(
                f"a picture is drawn by temperature, top_k, top_p and guidance_scale, but the call asks for {names}, "
                "which would read codes as tokens of a text: leave its option out."
            )
        cut = (
            {"greedy": True}
            if params.greedy
            else {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
        )
        return SamplingParams(guidance, **cut)


def _first(*values: int | None) -> int | None:
    """The first value that is there."""
    return next((value for value in values if value is not None), None)


class TextAcceleration(Acceleration):
    """Speculation in the ``generate`` of a causal LM.

    Args:
        model: the LM.
        speculation: what ``custom_generate`` takes.
    """

    def __init__(self, model: nn.Module, speculation: Speculation):
        self.speculation = speculation
        super().__init__(model)

    @property
    def stats(self) -> Stats | None:
        """Statistics of the last text."""
        return getattr(self.speculation, "stats", None)

    def generate(
        self,
        plain: Callable[..., Any],
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Decodes with speculation."""
        kwargs = self.keywords(args, kwargs)
        if kwargs.get("custom_generate") is not None:
            raise VistokError("the model is accelerated already: leave custom_generate out, or remove() that first.")
        tokenizer = kwargs.get("tokenizer") or self.speculation.tokenizer
        kwargs = whole_options(self.model, generation_config, kwargs, tokenizer)
        return plain(inputs, generation_config, **kwargs | {"custom_generate": self.speculation})


class GeneratorAcceleration(Acceleration):
    """A ``generate`` for a generator of this package, such as LlamaGen.

    Args:
        model: the generator.
        sampler: one of the draft-verify loop.
    """

    def __init__(self, model: nn.Module, sampler: AutoregressiveSampler):
        self.sampler = sampler
        super().__init__(model)

    def generate(
        self,
        plain: Callable[..., Any],
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        *,
        guidance_scale: float = 1.0,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """Draws a picture of each condition.

        Args:
            plain: of the model, which has none.
            inputs: classes int64 [B], or text features [B, T, D].
            attention_mask: which features are real, [B, T]; all if None.
            guidance_scale, do_sample, temperature, top_k, top_p: as of transformers' ``generate``.

        Returns:
            Codes, int64 [B, n].
        """
        params = SamplingParams(guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p, greedy=not do_sample)
        return self._run(self.model, Condition(inputs, attention_mask), params)


def accelerate(model: nn.Module, sampler: AutoregressiveSampler | Speculation | TextDrafter) -> Acceleration:
    """Puts a sampler into a model's ``generate``, until ``remove()`` or the end of the ``with`` block.

    Args:
        model: an image generator of transformers (Janus, Emu3, Chameleon), a causal LM of transformers, or a LlamaGen.
        sampler: for pictures a sampler such as ``SpeculativeJacobi(window=16)``; for text a ``Speculation`` or its
            drafter.

    Returns:
        What undoes it; its ``stats`` tell of the last call.

    Raises:
        VistokError: model and sampler do not go together, the model cannot draw, its attention takes no tree mask, or a
            sampler is at work on it already.

    Example:
        >>> with vistok.accelerate(model, SpeculativeJacobi(window=16)) as run:
        ...     codes = model.generate(**inputs, generation_mode="image", do_sample=True, guidance_scale=5)
        >>> run.stats.forwards
    """
    model, name = unwrapped(model), type(model).__name__
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if isinstance(sampler, TextDrafter):
        sampler = Speculation(sampler)
    if isinstance(sampler, Speculation):
        if not hasattr(model, "generate") or not isinstance(kind, str):
            raise VistokError(f"{name} generates no text: give a sampler of pictures, such as SpeculativeJacobi().")
        return TextAcceleration(model, sampler)
    if not isinstance(sampler, AutoregressiveSampler):
        raise VistokError(f"{sampler!r} is no sampler of the draft-verify loop: give one such as SpeculativeJacobi().")
    if hasattr(model, "tokens") and getattr(model, "family", None) is not None:
        return GeneratorAcceleration(model, sampler)
    if kind not in CODE_GENERATORS or not hasattr(model, "generate"):
        raise VistokError(
            f"{name} is no image generator that vistok knows: give one of {', '.join(CODE_GENERATORS)}, or speculation "
            "for text, such as Speculation(TokenRecycling())."
        )
    from vistok.samplers.targets.support import check_attention

    check_attention(model.config.get_text_config(decoder=True))
    return PictureAcceleration(model, sampler)
