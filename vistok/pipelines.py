"""Prompt in, images out: a generator, its tokenizer and its text encoder behind one call."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vistok.data.images import load_image, to_pil, to_tensor
from vistok.errors import VistokError, unknown_name
from vistok.files import check_writable
from vistok.models.codes.families import CODE_GENERATORS
from vistok.models.generators import GENERATORS
from vistok.models.interface import Condition, Control, Known, LoadRequest
from vistok.ops.linear import Int8Linear, PackedLinear, pack_linears
from vistok.ops.noise import derive_seed
from vistok.runtime import resolve_device, resolve_dtype
from vistok.samplers import SAMPLERS, Noise, SamplingParams, Stats, parse_sampler
from vistok.samplers.interface import Partial, Watch, shows_steps
from vistok.zoo import ModelCard, card, card_of_file, card_of_folder, cards, resolve, write_card
from vistok.zoo.hub import Pushable
from vistok.zoo.pretrained import Pretrained
from vistok.zoo.registry import hub_id
from vistok.zoo.transformers import load_config

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from vistok.models.interface import GeneratorFamily
    from vistok.models.text_encoder import TextEncoder
    from vistok.samplers import Sampler
    from vistok.tokenizers.interface import Tokenizer

DEFAULT_MODEL = "llamagen"
UNDECIDED = 0.72  # brightness of what a preview does not know, in [-1, 1]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
StepCallback = Callable[..., Mapping[str, Any] | None]
GUIDANCE = 3.0  # of models whose card tells no scale


@dataclass(frozen=True)
class Sample:
    """One image of a job.

    Attributes:
        index: its number in the job; its random numbers follow from the seed and this number alone.
        condition: the prompt or the class number that it was asked for.
    """

    index: int
    condition: str | int


@dataclass
class Output:
    """What a pipeline returns.

    Attributes:
        images: PIL images, in the order of the samples; none without a decoder. An array or a tensor where the call
            asked for one.
        tokens: their codes, int64 [N, n], or continuous tokens [N, n, D]; without a decoder as grids [N, h, w].
        stats: steps, target forwards, accepted lengths and seconds of drawing the tokens.
    """

    images: list[Image]
    tokens: Tensor
    stats: Stats


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
    """

    model: nn.Module
    tokenizer: Tokenizer
    text_encoder: TextEncoder | None
    name: str = DEFAULT_MODEL
    guidance: float = GUIDANCE
    temperature: float = 1.0
    sampling: Mapping[str, int | str] = field(default_factory=dict)
    control: tuple[Control, ...] = ()
    known: Known | None = None
    negative: str | None = None
    products: str | None = None
    _features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Pipeline:
        """Returns what :meth:`save_pretrained` wrote, or any other model by its name.

        Args:
            name: a folder, a hub id ``owner/name``, or a model of ``vistok models``.
            options: of :func:`pipeline`.

        Raises:
            VistokError: see :func:`pipeline`.
        """
        return pipeline(str(name), **options)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the generator, its image tokenizer and its text encoder into a folder that loads as a whole:
        ``vistok.pipeline(folder)``, or ``vistok sample --model FOLDER``.

        Args:
            folder: where to.
            dtype: of the weights in the files; unchanged if None.

        Raises:
            VistokError: a part cannot be saved.
        """
        if self.control or self.known is not None:
            raise VistokError("control pictures and known images are no part of a model: save the pipeline without.")
        folder = Path(folder)
        check_writable(folder, folder=True)
        for what, part in (("generator", self.model), ("image tokenizer", self.tokenizer)):
            if not isinstance(part, Pretrained):
                raise VistokError(
                    f"the {what} of '{self.name}' ({type(part).__name__}) is not vistok's own: save it by itself."
                )
        self.model.save_pretrained(folder, dtype)
        self.tokenizer.save_pretrained(folder / "tokenizer", dtype)
        if self.text_encoder is not None:
            self.text_encoder.save_pretrained(folder / "text_encoder")
        own = self.model.card
        card = ModelCard(
            name=self.name,
            task=f"{self.conditional_on}-to-image",
            family=self.model.family,
            parameters=sum(weight.numel() for weight in self.model.parameters()),
            files={},
            source=str(folder),
            licence="unknown" if own is None else own.licence,
            parts={"tokenizer": "tokenizer"},
            guidance=self.guidance,
            temperature=self.temperature,
            sampling=dict(self.sampling),
            paper=None if own is None else own.paper,
        )
        write_card(folder, card)

    def _loading(self, repo_id: str) -> str:
        return f'import vistok\n\npipe = vistok.pipeline("{repo_id}")'

    @property
    def family(self) -> GeneratorFamily:
        """The generator's family."""
        return GENERATORS[self.model.family]

    @property
    def conditional_on(self) -> str:
        """``text`` or ``class``."""
        return self.model.conditional_on

    @property
    def vq(self) -> Tokenizer:
        """The tokenizer, by its former name."""
        warnings.warn("Pipeline.vq is Pipeline.tokenizer now: use that name.", FutureWarning, 2)
        return self.tokenizer

    @property
    def size(self) -> int:
        """Side of the images in pixels; the width where they are no squares."""
        can, tokens = self.tokenizer.capabilities, self.model.tokens
        return can.image_size or tokens.line * tokens.patch * can.multiple

    @functools.cached_property
    def digest(self) -> str:
        """Short SHA-256 over a sample of all weights, which tells one set of weights from another."""
        digest = hashlib.sha256()
        for module in (self.model, self.tokenizer, self.text_encoder):
            for parameter in () if module is None else module.parameters():
                digest.update(parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

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
        known = getattr(self.model, "controls", ())
        if not known:
            raise VistokError(f"'{self.name}' follows no control pictures: leave --control out, or name a ControlAR.")
        if kind is None and len(known) > 1:
            raise VistokError(f"'{self.name}' follows {', '.join(known)}: say which of them the control picture is.")
        kind = known[0] if kind is None else kind
        if kind not in known:
            raise unknown_name(f"kind of control of '{self.name}'", kind, list(known))
        if not 0 <= strength < math.inf:
            raise VistokError(f"the strength of a control must be 0 or more, got {strength}.")
        image = load_image(picture) if isinstance(picture, str | Path) else picture
        side = self.model.multiple
        size = tuple(-(-length // side) * side for length in image.size)
        model = self.model.resized(size[1], size[0])
        if self.control and self.control[0].picture.shape[:1:-1] != size:
            width, height = self.control[0].picture.shape[:1:-1]
            raise VistokError(
                f"a control picture of {size[0]}x{size[1]} pixels cannot join one of {width}x{height}: make them "
                "of one size."
            )
        if size != image.size:
            image = image.resize(size)
        pixels = to_tensor(image)[None].to(next(self.model.parameters()).device)
        return replace(self, model=model, control=(*self.control, Control(pixels, kind, strength)))

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
        if not hasattr(self.model, "own_tokens"):
            raise VistokError(f"'{self.name}' draws its tokens in one order, around nothing: leave --image out.")
        image, shown = (load_image(each) if isinstance(each, str | Path) else each for each in (picture, mask))
        for what, each in (("picture", image), ("mask", shown)):
            if each.size != (self.size, self.size):
                width, height = each.size
                raise VistokError(
                    f"the {what} has {width}x{height} pixels, but '{self.name}' draws {self.size}x{self.size}: make it "
                    "of that size."
                )
        device, line = next(self.model.parameters()).device, self.model.tokens.line
        white = (to_tensor(shown).amax(0, keepdim=True) > 0).float()
        stays = torch.nn.functional.adaptive_max_pool2d(white, line).flatten().to(device) == 0
        if bool(stays.all()):
            raise VistokError("the mask is black everywhere, so that nothing is drawn: paint white what should change.")
        tokens = self.tokenizer.encode(to_tensor(image)[None].to(device))
        return replace(self, known=Known(self.model.own_tokens(tokens)[0], stays))

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
            sampler = parse_sampler(sampler or family.plain, self.sampling)
        if sampler.interface != family.interface:
            fitting = [name for name, kind in SAMPLERS.items() if kind.interface == family.interface]
            raise VistokError(
                f"the sampler {type(sampler).__name__} does not draw the {self.model.tokens.kind} of '{self.name}': "
                f"use one of {', '.join(fitting)}."
            )
        return sampler

    def check(self, conditions: Sequence[str | int], force: bool = False) -> None:
        """Refuses conditions that this model cannot follow.

        Args:
            conditions: prompts or class numbers.
            force: let a word-level model read words that it never saw.

        Raises:
            VistokError: a class out of range, text for a class model, a class for a text model, or an unknown word.
        """
        if self.conditional_on == "class":
            last = self.model.classes - 1
            for condition in conditions:
                if not isinstance(condition, int):
                    raise VistokError(f"'{self.name}' paints classes, not prompts: give a class from 0 to {last}.")
                if not 0 <= condition <= last:
                    raise VistokError(f"class {condition} does not exist: '{self.name}' knows classes 0 to {last}.")
            return
        for condition in conditions:
            if not isinstance(condition, str):
                raise VistokError(f"'{self.name}' paints prompts, not classes: give a prompt.")
            if not condition.strip():
                raise VistokError("the prompt is empty: say what to paint.")
        if not force and (unknown := self.text_encoder.unknown_words(conditions)):
            words = ", ".join(f"'{w}'" for w in unknown)
            known = " ".join(w for w in self.text_encoder.known_words if w.isalpha())
            raise VistokError(f"'{self.name}' never saw {words}; it knows: {known}. Use --force to go on all the same.")

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
        sampler, params = self.sampler(sampler), params or self.sampling_params()
        check_honoured(sampler, params)
        if self.negative is not None and not params.guided:
            raise VistokError("a negative prompt acts by guidance, and there is none: give --cfg above 1.")
        if self.known is not None and not getattr(sampler, "fills", False):
            raise VistokError(f"the sampler {type(sampler).__name__} draws whole images only: leave --image out.")
        if watch is not None and not shows_steps(sampler):
            raise VistokError(f"the sampler {type(sampler).__name__} shows no steps while it draws: leave watch out.")
        sampler = sampler.prepare(self.model, self.tokenizer)
        for start in range(0, len(samples), batch_size):
            batch = list(samples[start : start + batch_size])
            yield batch, self._draw(batch, sampler, params, seed, progress, watch, decode)

    @torch.inference_mode()
    def _draw(
        self, batch: list[Sample], sampler: Sampler, params: SamplingParams, seed: int, progress, watch, decode
    ) -> Output:
        device = next(self.model.parameters()).device
        condition = self._condition([s.condition for s in batch])
        noise = Noise(seed, torch.tensor([s.index for s in batch], device=device))
        report = None if progress is None else lambda gained: progress(gained * len(batch))
        shown = {} if watch is None else {"watch": watch}
        tokens, stats = sampler.sample(self.model, condition, params, noise, report, **shown)
        if self.tokenizer is None:
            return Output([], self.model.image_tokens(tokens).cpu(), stats)
        if not decode:
            return Output([], tokens.cpu(), stats)
        # One by one: rounding inside a batched decoder depends on the batch, and an image must not.
        images = [to_pil(self._decode(drawn, seed, s.index))[0] for drawn, s in zip(tokens, batch, strict=True)]
        return Output(images, tokens.cpu(), stats)

    @torch.inference_mode()
    def preview(self, partial: Partial, seed: int = 0) -> list[Image]:
        """Returns images while they are drawn: what is not decided is grey, and a sequence is decoded as far as it is.

        Args:
            partial: as ``watch`` of :meth:`iterate` is shown it.
            seed: of decoders that draw noise.

        Raises:
            VistokError: there is no decoder.
        """
        if self.tokenizer is None:
            raise VistokError(f"'{self.name}' comes without a decoder: name one as tokenizer=.")
        decided = partial.decided
        shown = decided if partial.tokens.ndim == 2 else decided[..., None]
        tokens = self.model.image_tokens(partial.tokens.masked_fill(~shown, 0))
        can, spec = self.tokenizer.capabilities, self.model.tokens
        decoding = {"generator": torch.Generator().manual_seed(derive_seed(seed))} if can.stochastic_decode else {}
        if spec.layout == "sequence":
            if can.variable_length:
                known = int(decided.sum(1).min())
                decoding["length"] = max((each for each in can.lengths if each <= known), default=can.lengths[0])
            return to_pil(self.tokenizer.decode(tokens, **decoding))
        pixels = self.tokenizer.decode(tokens, **decoding)
        places = (
            self.model.image_tokens(decided.long()) if spec.kind == "codes" else decided.unflatten(1, (-1, spec.line))
        )
        mask = torch.nn.functional.interpolate(places[:, None].float(), pixels.shape[-2:], mode="nearest")
        return to_pil(pixels.clamp(-1, 1) * mask + UNDECIDED * (1 - mask))

    def _decode(self, drawn: Tensor, seed: int, index: int) -> Tensor:
        """The image of one sample's tokens [n] or [n, D], as [1, 3, H, W]."""
        tokens = self.model.image_tokens(drawn[None])
        if not self.tokenizer.capabilities.stochastic_decode:
            return self.tokenizer.decode(tokens)
        return self.tokenizer.decode(tokens, generator=torch.Generator().manual_seed(derive_seed(seed, index)))

    def _condition(self, conditions: list[str | int]) -> Condition:
        """The condition of a batch; each caption is encoded by itself and once."""
        weight = next(self.model.parameters())
        if self.conditional_on == "class":
            return Condition(torch.tensor(conditions, device=weight.device), None, self.control, self.known)
        if getattr(self.model, "reader", None) is not None:  # a language model draws, and reads prompts in tokens
            read = self.model.reader(conditions)
            if self.negative is not None:
                avoided = self.model.reader([self.negative])
                read = replace(read, negative_ids=avoided.ids, negative_mask=avoided.mask)
            return read.to(weight.device)
        features, mask = self._read(conditions, weight)
        negative = None
        if self.negative is not None:
            negative = Condition(*self._read([self.negative] * len(conditions), weight))
        return Condition(features, mask, self.control, self.known, negative)

    def _read(self, texts: Sequence[str], weight: Tensor) -> tuple[Tensor, Tensor]:
        """Features of texts and their mask, like a weight of the generator."""
        for text in set(texts) - set(self._features):
            self._features[text] = self.text_encoder([text])
        features, masks = zip(*(self._features[text] for text in texts), strict=True)
        return torch.cat(features).to(weight), torch.cat(masks).to(weight.device)

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
            conditions: a prompt or a class, or several.
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
        conditions = [conditions] if isinstance(conditions, str | int) else list(conditions)
        self.check(conditions, force)
        samples = expand(conditions, n)
        watch = None if callback_on_step_end is None else functools.partial(_call_back, self, callback_on_step_end)
        drawing = (samples, sampler, params, seed, batch_size, None, watch, output_type != "latent")
        parts = [output for _, output in self.iterate(*drawing)]
        images = [image for part in parts for image in part.images]
        stats = [part.stats for part in parts]
        shown = _as_type(images, output_type) if images else images
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


def _as_type(images: list[Image], output_type: str) -> Any:
    """Images as ``output_type`` says."""
    if output_type == "pil":
        return images
    pixels = torch.stack([to_tensor(image) for image in images]) / 2 + 0.5
    return pixels if output_type == "pt" else pixels.movedim(1, -1).numpy()


def check_honoured(sampler: Sampler, params: SamplingParams) -> None:
    """Raises VistokError if parameters say something that a sampler does not heed."""
    silent = SamplingParams(greedy=params.temperature == 0)  # which is no second wish
    for each in fields(params):
        if each.name not in sampler.honours and getattr(params, each.name) != getattr(silent, each.name):
            raise VistokError(
                f"the sampler {type(sampler).__name__} knows no {each.name.replace('_', '-')}: leave it out."
            )


def expand(conditions: Sequence[str | int], n: int) -> list[Sample]:
    """Returns ``n`` samples of each condition, numbered in order.

    Raises:
        VistokError: ``n`` is below 1.
    """
    if n < 1:
        raise VistokError(f"the number of images must be at least 1, got {n}.")
    return [Sample(i * n + j, condition) for i, condition in enumerate(conditions) for j in range(n)]


def pipeline(
    name: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    text_encoder: str | Path | None = None,
    size: int | None = None,
    preset: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    tokens: int | None = None,
    vq: str | Path | None = None,
) -> Pipeline:
    """Loads all that a model needs to paint.

    Args:
        name: a model of ``vistok models``; its embedded or published parts are taken where no other is named.
            ``llamagen`` if None, or the embedded generator of the embedded ``tokenizer`` that is named.
        checkpoint: weights of the generator: a path, or a hub id ``owner/name:file``.
        tokenizer: weights of the image tokenizer, likewise, or an embedded tokenizer's name.
        text_encoder: folder or hub id of a T5 encoder.
        size: side of the images in pixels, for checkpoint files that do not tell.
        preset: shape of a checkpoint file whose name is not a published one, e.g. ``GPT-B``.
        device: ``cpu``, ``cuda`` or ``cuda:1``; the GPU where there is one if None.
        dtype: ``float32``, ``bfloat16`` or ``float16``; or ``int8``, products of a generator that draws token behind
            token in whole numbers, on a CPU: faster, and no longer quite its law.
        compile: compile the transformer's blocks with ``torch.compile``, on a GPU.
        tokens: draw only so many first tokens of each image, where they are ordered from coarse to fine.
        vq: the former name of ``tokenizer``.

    Raises:
        VistokError: an unknown name, device or dtype, an option that the model does not have, or weights that do not
            fit.
    """
    if vq is not None:
        warnings.warn("vq= is tokenizer= now: use that name.", FutureWarning, 2)
        tokenizer = vq
    products = "int8" if dtype == "int8" else None
    target, number_format = resolve_device(device), resolve_dtype("float32" if products else dtype)
    if products and target.type != "cpu":
        raise VistokError(f"int8 products are for a CPU, but the device is {target}: use --dtype bfloat16.")
    if compile and target.type == "cpu":
        raise VistokError("on a CPU packed weights are faster than compiled blocks: leave --compile out.")
    if name is None and checkpoint is None and tokenizer is not None:
        name = _generator_of(str(tokenizer))
    if name is not None and checkpoint is None and (given_model := _given_model(name)) is not None:
        own, checkpoint = given_model, name
        found = own
    else:
        own = _own_card(name or DEFAULT_MODEL, checkpoint)
        found = own or _card_for(name or DEFAULT_MODEL, checkpoint)
    if found.family not in GENERATORS:
        raise VistokError(f"'{found.name}' is a model for {found.task}, it does not paint: see `vistok models`.")
    family = GENERATORS[found.family]
    given = {"size": size, "preset": preset, "tokens": tokens, "text_encoder": text_encoder, "compile": compile or None}
    for option, value in given.items():
        if value is not None and option not in family.options:
            raise VistokError(f"'{found.name}' has no --{option.replace('_', '-')}: leave it out.")
    if products and family.interface != "autoregressive":
        raise VistokError(
            f"'{found.name}' draws no token behind the other, so --dtype int8 is not for it: leave it out."
        )
    request = LoadRequest(found, checkpoint, tokenizer, size, preset, tokens)
    model, image_tokenizer = family.load(request)
    encoder = _text_encoder(model, request, text_encoder)
    model = model.to(target, number_format)
    if target.type == "cpu":
        pack_linears(model, Int8Linear if products else PackedLinear)  # the same seed, the same image in any batch
    if compile:
        model.compile_blocks()
    if encoder is not None:
        encoder = encoder.to(target).eval()
    suits = {} if own is None else {"guidance": own.guidance, "temperature": own.temperature, "sampling": own.sampling}
    suits = {key: value for key, value in suits.items() if value is not None}
    image_tokenizer = None if image_tokenizer is None else image_tokenizer.to(target)
    return Pipeline(model, image_tokenizer, encoder, found.name, products=products, **suits)


def _given_model(name: str) -> ModelCard | None:
    """The card of a generator that is named by its folder or hub id; None where the name is that of a model.

    Raises:
        VistokError: there is no image generator.
    """
    folder = Path(name).expanduser()
    if any(name in (each.name, *each.aliases) for each in cards()) or not (folder.is_dir() or hub_id(name)):
        return None
    found = card_of_folder(name) if folder.is_dir() else None
    if found is not None:
        return found
    try:
        kind = load_config(name, "image generator").model_type
    except VistokError as error:
        if folder.is_dir():
            raise
        found = _hub_card(name)
        if found is None:
            raise error from None
        return found
    if kind not in CODE_GENERATORS:
        raise VistokError(
            f"'{name}' holds a {kind}, which is no image generator that vistok knows: name one of "
            f"{', '.join(CODE_GENERATORS)}, or a model of `vistok models`."
        )
    return ModelCard(name, "text-to-image", kind, 0, {}, str(name), "see its repository")


def _hub_card(name: str) -> ModelCard | None:
    """The card of a repository that holds a saved pipeline, as one of the folder that it was fetched to; None where the
    repository does not exist or holds something else."""
    try:
        return card_of_folder(resolve(name))
    except VistokError:
        return None


def _own_card(name: str, checkpoint: str | Path | None) -> ModelCard | None:
    """The card of the very weights: a checkpoint's own, where it has one."""
    if checkpoint is None:
        return _card_for(name, None)
    return card_of_folder(checkpoint) or card_of_file(checkpoint)


def _card_for(name: str, checkpoint: str | Path | None) -> ModelCard:
    """The card of a name; that of a family where a checkpoint is named beside it and no weights have its name.

    Raises:
        VistokError: no model has this name, or only a family of which no weights are known.
    """
    if name not in GENERATORS or any(name in (each.name, *each.aliases) for each in cards()):
        return card(name)
    if checkpoint is None:
        raise VistokError(f"there are no embedded or published weights of {name}: name yours with --checkpoint.")
    return ModelCard(name, "class-to-image", name, 0, {}, "", "unknown")


def _generator_of(tokenizer: str) -> str:
    """The embedded generator of an embedded tokenizer's tokens: the default one, where it is among several.

    Raises:
        VistokError: the tokenizer is not embedded, or no embedded generator draws its tokens.
    """
    known: dict[str, str] = {}
    for each in sorted(cards(), key=lambda card: DEFAULT_MODEL not in (card.name, *card.aliases)):
        if each.embedded and each.family in GENERATORS and "tokenizer" in each.parts:
            known.setdefault(each.parts["tokenizer"], each.name)
    wanted = next((each.name for each in cards() if tokenizer in (each.name, *each.aliases)), tokenizer)
    base = next((each.parts.get("codes") for each in cards() if each.name == wanted), None)
    if wanted not in known and base in known:  # it decodes the same codes
        return known[base]
    if wanted not in known:
        raise VistokError(
            f"no embedded generator draws tokens of '{tokenizer}': name the generator with --model or --checkpoint, or "
            f"use one of {', '.join(known)}."
        )
    return known[wanted]


def _text_encoder(model: nn.Module, request: LoadRequest, given: Any) -> TextEncoder | None:
    if getattr(model, "reader", None) is not None:
        if given is not None:
            raise VistokError(f"'{request.source}' reads prompts itself: leave --text-encoder out.")
        return model.reader
    if model.conditional_on != "text":
        if given is not None:
            raise VistokError(f"'{request.source}' paints classes and reads no text: leave --text-encoder out.")
        return None
    from vistok.models.text_encoder import load_text_encoder

    if given is None:
        folder = resolve(request.source)
        own = card_of_folder(folder) if folder.is_dir() else None
        if own is not None and "text_encoder" in own.parts:  # that of another generator
            folder = resolve(own.parts["text_encoder"])
        given = folder / "text_encoder"
        if not given.is_dir():
            raise VistokError("this model comes without its text-encoder weights: name them with --text-encoder.")
    encoder = load_text_encoder(given)
    if encoder.dim != model.text_width:
        raise VistokError(
            f"'{request.source}' reads text features of width {model.text_width} but '{given}' gives {encoder.dim}: "
            "name the text encoder that it was trained with."
        )
    return encoder
