"""The pipeline: a generator, its tokenizer and its text encoder behind one call."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.models.generators import GENERATORS
from vistok.models.interface import Condition, Control, Known
from vistok.pipelines.conditioning import check_conditions, encode_conditions, listed, with_control, with_image
from vistok.pipelines.decoding import OUTPUT_TYPES, as_type, decode_images, preview_images
from vistok.pipelines.interface import Output, Sample, expand
from vistok.pipelines.resolve import DEFAULT_MODEL
from vistok.pipelines.saving import save_pipeline
from vistok.samplers import SAMPLERS, Noise, SamplingParams, parse_sampler
from vistok.samplers.interface import Partial, Watch, shows_steps
from vistok.samplers.stats import Stats
from vistok.zoo.hub import Pushable

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.models.interface import Generator, GeneratorFamily, TextReader
    from vistok.samplers import Sampler
    from vistok.tokenizers.interface import Tokenizer

StepCallback = Callable[..., Mapping[str, Any] | None]
GUIDANCE = 3.0  # of models whose card tells no scale


@dataclass(eq=False)
class Pipeline(Pushable):
    """A generator with its tokenizer and, for text, its caption encoder. Build it with :func:`pipeline`.

    Attributes:
        model: the generator, see ``vistok.models.interface.Generator``.
        tokenizer: from its tokens to pixels; None of models that come without a decoder, which give codes alone.
        text_encoder: what reads the captions; None of class-conditional generators.
        name: of the generator.
        control: pictures that all images follow, see :meth:`with_control`.
        known: what all images show already, see :meth:`with_image`.
        negative: the prompt that all images are guided away from, see :meth:`with_negative`.
        products: ``int8`` where the generator's products are; None where they are in the format of its weights.
        guidance, temperature: of sampling, where no parameters are given.
        sampling: options of its samplers that suit it, where no other are given.
        text_features: the captions that were read so far, with their features [1, T, D] and masks [1, T].
    """

    model: Generator
    tokenizer: Tokenizer | None
    text_encoder: TextReader | None
    name: str = DEFAULT_MODEL
    guidance: float = GUIDANCE
    temperature: float = 1.0
    sampling: Mapping[str, int | str] = field(default_factory=dict)
    control: tuple[Control, ...] = ()
    known: Known | None = None
    negative: str | None = None
    products: str | None = None
    text_features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Pipeline:
        """Returns what :meth:`save_pretrained` wrote, or any other model by its name.

        Args:
            name: a folder, a hub id ``owner/name``, or a model of ``vistok models``.
            options: of :func:`pipeline`.

        Raises:
            VistokError: see :func:`pipeline`.
        """
        from vistok.pipelines.load import pipeline

        return pipeline(str(name), **options)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None) -> None:
        """Writes the generator, its image tokenizer and its text encoder into a folder that loads as a whole:
        ``vistok.pipeline(folder)``, or ``vistok sample --model FOLDER``.

        Args:
            folder: where to.
            dtype: of the weights in the files, such as ``float16``; unchanged if None.

        Raises:
            VistokError: a part cannot be saved.
        """
        save_pipeline(self, folder, dtype)

    def _loading(self, repo_id: str) -> str:
        return f'import vistok\n\npipe = vistok.pipeline("{repo_id}")'

    @property
    def family(self) -> GeneratorFamily:
        """The generator's family."""
        return GENERATORS[self.model.family]

    @property
    def device(self) -> torch.device:
        """Where the generator's weights are."""
        return next(self.model.parameters()).device

    @property
    def conditional_on(self) -> str:
        """``text`` or ``class``."""
        return self.model.conditional_on

    @property
    def vq(self) -> Tokenizer:
        """The tokenizer, by its former name."""
        warnings.warn("Pipeline.vq is Pipeline.tokenizer now: use that name.", FutureWarning, 2)
        return self.decoder

    @property
    def decoder(self) -> Tokenizer:
        """The tokenizer, where there is one.

        Raises:
            VistokError: the model comes without.
        """
        if self.tokenizer is None:
            raise VistokError(f"'{self.name}' comes without a decoder: name one as tokenizer=.")
        return self.tokenizer

    @property
    def size(self) -> int:
        """Side of the images in pixels; the width where they are no squares."""
        can, tokens = self.decoder.capabilities, self.model.tokens
        return can.image_size or tokens.line * tokens.patch * can.multiple

    @functools.cached_property
    def digest(self) -> str:
        """Short SHA-256 over a sample of all weights, which tells one set of weights from another."""
        digest = hashlib.sha256()
        parts: tuple[object, ...] = (self.model, self.tokenizer, self.text_encoder)
        for part in parts:
            for parameter in part.parameters() if isinstance(part, nn.Module) else []:
                digest.update(parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its pictures from another pipeline's, by name: the weights, and what all pictures follow."""
        found: dict[str, Any] = {"model": self.name, "weights": self.digest, "tokens": self.model.tokens.length}
        if self.products is not None:
            found["products"] = self.products
        if self.control:
            found["control"] = [[_sha256(each.picture), each.kind, each.strength] for each in self.control]
        if self.negative is not None:
            found["negative"] = self.negative
        if self.known is not None:
            found["known"] = _sha256(self.known.tokens, self.known.mask)
        return found

    def sampling_params(
        self, guidance: float | None = None, temperature: float | None = None, **options
    ) -> SamplingParams:
        """Returns sampling parameters: the model's own guidance and temperature where None is given, and ``options``,
        the other attributes of :class:`SamplingParams`."""
        guidance = self.guidance if guidance is None else guidance
        return SamplingParams(guidance, temperature=self.temperature if temperature is None else temperature, **options)

    def with_control(self, picture: Image | str | Path, kind: str | None = None, strength: float = 1.0) -> Pipeline:
        """Returns a pipeline whose images follow a control picture and have its size; controls add up.

        Args:
            picture: what to follow, as the weights know it, such as white edges on black. A side that is no whole
                number of tokens is enlarged to one.
            kind: what it shows, e.g. ``canny``; the one kind that the weights know if None.
            strength: how much it counts, 0 for not at all.

        Raises:
            VistokError: the model follows no such pictures, or the size does not fit it or an earlier control.
        """
        return with_control(self, picture, kind, strength)

    def with_negative(self, prompt: str, force: bool = False) -> Pipeline:
        """Returns a pipeline whose images guidance leads away from a prompt, in the place of no prompt.

        Args:
            prompt: what the images are not to show.
            force: take words that the model never saw.

        Raises:
            VistokError: a model of classes, or an empty or unknown prompt.
        """
        if self.conditional_on == "class":
            raise VistokError(f"'{self.name}' paints classes and reads no prompts: leave --negative out.")
        self.check([prompt], force)
        return replace(self, negative=prompt)

    def with_image(self, picture: Image | str | Path, mask: Image | str | Path) -> Pipeline:
        """Returns a pipeline that draws anew what a mask shows white of a picture: the tokens of the rest stay.

        Args:
            picture: of the size of the model's images.
            mask: of the same size; a token is drawn if any pixel of it is nearer to white than to black.

        Raises:
            VistokError: the model draws in one order only, a size that is not the model's, or a mask without white.
        """
        return with_image(self, picture, mask)

    def sampler(self, sampler: Sampler | str | None = None) -> Sampler:
        """Returns a sampler for this model.

        Args:
            sampler: itself, its name with options such as ``sjd:window=16``, or None for the model's plain one. What is
                named takes the options that suit the model where the text gives no others.

        Raises:
            VistokError: an unknown sampler or option, or a sampler of other generators.
        """
        family = self.family
        if sampler is None or isinstance(sampler, str):
            sampler = parse_sampler(family.plain if sampler is None else sampler, self.sampling)
        chosen: Sampler = sampler
        if chosen.interface != family.interface:
            fitting = [name for name, kind in SAMPLERS.usable().items() if kind.interface == family.interface]
            raise VistokError(
                f"the sampler {type(chosen).__name__} does not draw the {self.model.tokens.kind} of '{self.name}': "
                f"use one of {', '.join(fitting)}."
            )
        return chosen

    def check(self, conditions: Sequence[str | int], force: bool = False) -> None:
        """Refuses conditions that this model cannot follow.

        Args:
            conditions: prompts or class numbers.
            force: let a word-level model read words that it never saw.

        Raises:
            VistokError: a class out of range, text for a class model, a class for a text model, or an unknown word.
        """
        check_conditions(self, conditions, force)

    def condition(self, conditions: Sequence[str | int]) -> Condition:
        """Returns what the generator is told: a batch of prompts or class numbers, and what all images have in common.

        Args:
            conditions: checked with :meth:`check` by the caller.
        """
        return encode_conditions(self, conditions)

    def iterate(
        self,
        samples: Sequence[Sample],
        sampler: Sampler | str | None = None,
        params: SamplingParams | None = None,
        seed: int = 0,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        decode: bool = True,
    ) -> Iterator[tuple[list[Sample], Output]]:
        """Draws samples batch after batch.

        Args:
            samples: what to draw; checked with :meth:`check` by the caller.
            sampler: how tokens are drawn, see :meth:`sampler`.
            params: guidance, temperature and truncation; the model's own if None.
            seed: of the job.
            batch_size: images at a time; it does not change them.
            progress: called with the number of tokens that were just committed.
            watch: shown the tokens of the batch after each step; :meth:`preview` makes images of them.
            decode: whether tokens become images.

        Raises:
            VistokError: a sampler of other generators or one that shows no steps to ``watch``, or parameters that it
                does not heed.
        """
        if batch_size < 1:
            raise VistokError(f"the batch size must be at least 1, got {batch_size}.")
        chosen, params = self.sampler(sampler), params or self.sampling_params()
        check_honoured(chosen, params)
        if self.negative is not None and not params.guided:
            raise VistokError("a negative prompt acts by guidance, and there is none: give --cfg above 1.")
        if self.known is not None and not getattr(chosen, "fills", False):
            raise VistokError(f"the sampler {type(chosen).__name__} draws whole images only: leave --image out.")
        if watch is not None and not shows_steps(chosen):
            raise VistokError(f"the sampler {type(chosen).__name__} shows no steps while it draws: leave watch out.")
        chosen = chosen.prepare(self.model, self.tokenizer)
        for start in range(0, len(samples), batch_size):
            batch = list(samples[start : start + batch_size])
            yield batch, self._draw(batch, chosen, params, seed, progress, watch, decode)

    @torch.inference_mode()
    def _draw(
        self, batch: list[Sample], sampler: Sampler, params: SamplingParams, seed: int, progress, watch, decode
    ) -> Output:
        condition = self.condition([sample.condition for sample in batch])
        indices = [sample.index for sample in batch]
        noise = Noise(seed, torch.tensor(indices, device=self.device))
        report = None if progress is None else lambda gained: progress(gained * len(batch))
        shown = {} if watch is None else {"watch": watch}
        drawn = sampler.sample(self.model, condition, params, noise, report, **shown)
        if not isinstance(drawn, tuple) or len(drawn) != 2 or not isinstance(drawn[1], Stats):
            raise VistokError(f"{type(sampler).__name__} must give tokens and Stats, got {type(drawn).__name__}.")
        tokens, stats = drawn
        if self.tokenizer is None:
            return Output([], self.model.image_tokens(tokens).cpu(), stats)
        if not decode:
            return Output([], tokens.cpu(), stats)
        return Output(decode_images(self, tokens, indices, seed), tokens.cpu(), stats)

    @torch.inference_mode()
    def preview(self, partial: Partial, seed: int = 0) -> list[Image]:
        """Returns images while they are drawn: what is not decided is grey, and a sequence is decoded as far as it is.

        Args:
            partial: as ``watch`` of :meth:`iterate` is shown it.
            seed: of decoders that draw noise.

        Raises:
            VistokError: there is no decoder.
        """
        return preview_images(self, partial, seed)

    def __call__(
        self,
        conditions: str | int | Sequence[str | int],
        n: int = 1,
        *,
        sampler: Sampler | str | None = None,
        seed: int = 0,
        params: SamplingParams | None = None,
        batch_size: int = 8,
        force: bool = False,
        generator: torch.Generator | None = None,
        num_images_per_prompt: int | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: StepCallback | None = None,
        law: SamplingParams | None = None,
    ) -> Output:
        """Draws ``n`` images of each condition.

        Args:
            conditions: a prompt or a class, or several; also classes in an array or a tensor.
            n: images of each.
            sampler, params, batch_size: see :meth:`iterate`.
            seed: the same seed gives the same images.
            force: see :meth:`check`.
            generator: draws the seed, as users of diffusers know it; in place of ``seed``.
            num_images_per_prompt: what diffusers calls ``n``.
            output_type: ``pil`` images; ``np``, an array [N, H, W, 3] in [0, 1]; ``pt``, a tensor [N, 3, H, W] in
                [0, 1]; or ``latent``, tokens alone.
            callback_on_step_end: called as ``callback(pipe, step, step, {"latents": tokens, "decided": mask})`` behind
                each step, see ``Partial``; it looks on and changes nothing.
            law: the former name of ``params``.

        Raises:
            VistokError: see :meth:`check` and :meth:`iterate`; or two arguments that say the same.
        """
        if law is not None:
            warnings.warn("law= is params= now: use that name.", FutureWarning, 2)
            params = law
        if output_type not in OUTPUT_TYPES:
            raise unknown_name("output_type", str(output_type), list(OUTPUT_TYPES))
        if num_images_per_prompt is not None:
            if n not in (1, num_images_per_prompt):
                raise VistokError(f"n={n} and num_images_per_prompt={num_images_per_prompt} say the same: give one.")
            n = num_images_per_prompt
        if generator is not None:
            seed = _drawn_seed(generator, seed)
        conditions = listed(conditions)
        self.check(conditions, force)
        samples = expand(conditions, n)
        watch = None if callback_on_step_end is None else functools.partial(_call_back, self, callback_on_step_end)
        drawing = (samples, sampler, params, seed, batch_size, None, watch, output_type != "latent")
        parts = [output for _, output in self.iterate(*drawing)]
        images = [image for part in parts for image in part.images]
        stats = [part.stats for part in parts]
        shown = as_type(images, output_type) if images else images
        return Output(shown, torch.cat([p.tokens for p in parts]), type(stats[0]).merged(stats))


def _drawn_seed(generator: torch.Generator, seed: int) -> int:
    """A seed that a generator draws, another one in each call."""
    if seed != 0:
        raise VistokError("seed and generator both say where random numbers come from: give one.")
    if not isinstance(generator, torch.Generator):
        raise VistokError(f"generator must be one torch.Generator for all images, got {type(generator).__name__}.")
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def _call_back(pipe: Pipeline, callback: StepCallback, partial: Partial) -> None:
    given = {"latents": partial.tokens, "decided": partial.decided}
    told = callback(pipe, partial.step, partial.step, given)
    if told and any(told.get(name) is not value for name, value in given.items() if name in told):
        raise VistokError("callback_on_step_end returned other latents, and tokens are not changed: return none.")


def check_honoured(sampler: Sampler, params: SamplingParams) -> None:
    """Raises VistokError if parameters say something that a sampler does not heed."""
    silent = SamplingParams(greedy=params.temperature == 0)  # which is no second wish
    for each in fields(params):
        if each.name not in sampler.honours and getattr(params, each.name) != getattr(silent, each.name):
            raise VistokError(
                f"the sampler {type(sampler).__name__} knows no {each.name.replace('_', '-')}: leave it out."
            )


def _sha256(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(each.cpu().numpy().tobytes() for each in tensors)).hexdigest()
