"""Prompt in, pictures out: a generator, its tokenizer and its text encoder behind one call."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.data.images import to_pil
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.ops.linear import pack_linears
from vistok.samplers import (
    CONTINUOUS,
    Autoregressive,
    MaskedAutoregressive,
    Noise,
    SamplingParams,
    Stats,
    sampler_class,
)
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.vq import VQTokenizer
from vistok.zoo import card, card_of_file, cards

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.models.mar import MAR
    from vistok.models.text_encoder import TextEncoder
    from vistok.samplers import Sampler
    from vistok.tokenizers.interface import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GUIDANCE = 3.0  # of models whose card tells no scale


@dataclass(frozen=True)
class Sample:
    """One picture of a job.

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
        images: PIL pictures, in the order of the samples.
        tokens: their image codes, int64 [N, n], or continuous tokens [N, n, D].
        stats: steps, target forwards, accepted lengths and seconds of drawing the tokens.
    """

    images: list[Image]
    tokens: Tensor
    stats: Stats


@dataclass(eq=False)
class Pipeline:
    """A generator with its tokenizer and, for text, its caption encoder. Build it with :func:`pipeline`.

    Attributes:
        model: the generator.
        vq: its tokenizer.
        text_encoder: what reads the captions.
        name: of the generator.
        guidance, temperature: of sampling, where no parameters are given.
        sampling: options of its samplers that suit it, where no other are given.
    """

    model: LlamaGen | MAR
    vq: Tokenizer
    text_encoder: TextEncoder | None
    name: str = "llamagen"
    guidance: float = GUIDANCE
    temperature: float = 1.0
    sampling: Mapping[str, int | str] = field(default_factory=dict)
    _features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def conditional_on(self) -> str:
        """``text`` or ``class``."""
        return "text" if self.model.config.model_type == "t2i" else "class"

    @property
    def continuous(self) -> bool:
        """Whether tokens are vectors, not codes."""
        return self.vq.capabilities.codebook_size is None

    @property
    def plain_sampler(self) -> str:
        """Name of the sampler that drafts nothing."""
        return "mar" if self.continuous else "ar"

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        if self.continuous:
            return self.model.config.img_size
        return self.vq.capabilities.image_size or self.model.config.grid * self.vq.capabilities.multiple

    @functools.cached_property
    def digest(self) -> str:
        """Short SHA-256 over a sample of all weights, which tells one set of weights from another."""
        digest = hashlib.sha256()
        for module in (self.model, self.vq, self.text_encoder):
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

    def check(self, conditions: Sequence[str | int], force: bool = False) -> None:
        """Refuse conditions that this model cannot follow.

        Args:
            conditions: prompts or class numbers.
            force: let a word-level model read words that it never saw.

        Raises:
            VistokError: a class out of range, text for a class model, a class for a text model, or an unknown word.
        """
        if self.conditional_on == "class":
            last = self.model.config.num_classes - 1
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
        sampler: Sampler | None = None,
        params: SamplingParams | None = None,
        seed: int = 0,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[list[Sample], Output]]:
        """Paint samples batch after batch.

        Args:
            samples: what to paint; checked with :meth:`check` by the caller.
            sampler: how tokens are drawn; the model's plain way if None.
            params: guidance, temperature and truncation; the model's own if None.
            seed: of the job.
            batch_size: pictures at a time; it does not change them.
            progress: called with the number of tokens that were just committed.
        """
        if batch_size < 1:
            raise VistokError(f"the batch size must be at least 1, got {batch_size}.")
        plain = MaskedAutoregressive if self.continuous else Autoregressive
        sampler, params = sampler or plain(**self.sampling), params or self.sampling_params()
        for start in range(0, len(samples), batch_size):
            batch = list(samples[start : start + batch_size])
            yield batch, self._paint(batch, sampler, params, seed, progress)

    @torch.inference_mode()
    def _paint(self, batch: list[Sample], sampler: Sampler, params: SamplingParams, seed: int, progress) -> Output:
        device = next(self.model.parameters()).device
        condition, mask = self._condition([s.condition for s in batch])
        noise = Noise(seed, torch.tensor([s.index for s in batch], device=device))
        report = None if progress is None else lambda gained: progress(gained * len(batch))
        tokens, stats = sampler.sample(self.model, condition, mask, params, noise, report)
        # One by one: rounding inside a batched decoder depends on the batch, and a picture must not.
        images = [to_pil(self._decode(codes, seed, s.index))[0] for codes, s in zip(tokens, batch, strict=True)]
        return Output(images, tokens.cpu(), stats)

    def _decode(self, codes: Tensor, seed: int, index: int) -> Tensor:
        """The picture of one sample's codes [n], or of its vectors [n, D], as [1, 3, H, W]."""
        if self.continuous:
            return self.vq.decode(self.model.unpatchify(codes[None]))
        if self.vq.capabilities.layout == "grid":
            return self.vq.decode(codes.view(1, self.model.config.grid, -1))
        if not self.vq.capabilities.stochastic_decode:
            return self.vq.decode(codes[None])
        return self.vq.decode(codes[None], generator=torch.Generator().manual_seed(seed * 1_000_003 + index))

    def _condition(self, conditions: list[str | int]) -> tuple[Tensor, Tensor | None]:
        """Labels [B], or features [B, T, D] with their mask [B, T]; each caption is encoded by itself and once."""
        weight = next(self.model.parameters())
        if self.conditional_on == "class":
            return torch.tensor(conditions, device=weight.device), None
        for text in set(conditions) - set(self._features):
            self._features[text] = self.text_encoder([text])
        features, masks = zip(*(self._features[text] for text in conditions), strict=True)
        return torch.cat(features).to(weight), torch.cat(masks).to(weight.device)

    def __call__(
        self,
        conditions: str | int | Sequence[str | int],
        n: int = 1,
        *,
        sampler: Sampler | None = None,
        seed: int = 0,
        params: SamplingParams | None = None,
        batch_size: int = 8,
        force: bool = False,
    ) -> Output:
        """Paint ``n`` pictures of each condition.

        Args:
            conditions: a prompt or a class, or several.
            n: pictures of each.
            sampler, params, batch_size: see :meth:`iterate`.
            seed: the same seed gives the same pictures.
            force: see :meth:`check`.

        Raises:
            VistokError: see :meth:`check`.
        """
        conditions = [conditions] if isinstance(conditions, str | int) else list(conditions)
        self.check(conditions, force)
        samples = expand(conditions, n)
        parts = [output for _, output in self.iterate(samples, sampler, params, seed, batch_size)]
        images = [image for part in parts for image in part.images]
        stats = [part.stats for part in parts]
        return Output(images, torch.cat([p.tokens for p in parts]), type(stats[0]).merged(stats))


def build_sampler(pipe: Pipeline, name: str | None, draft: str | Path | None = None, **options) -> Sampler:
    """A sampler by its name, for the command line.

    Args:
        pipe: what it will sample from.
        name: one of ``vistok.samplers.SAMPLERS``; the model's plain one if None.
        draft: the drafter of ``eagle`` and ``lantern``: an embedded model, a folder or a hub id; the embedded model's
            own if None.
        options: the sampler's own; None means the model's choice or the default.

    Raises:
        VistokError: an unknown sampler, one for another kind of tokens, or an option that it does not have.
    """
    name = name or pipe.plain_sampler
    cls = sampler_class(name)
    if (name in CONTINUOUS) != pipe.continuous:
        kind, other = ("vectors", "codes") if pipe.continuous else ("codes", "vectors")
        raise VistokError(f"the sampler '{name}' draws {other}, but the tokens of '{pipe.name}' are {kind}.")
    known = {f.name for f in fields(cls) if f.init}
    given = dict(pipe.sampling) | {key: value for key, value in options.items() if value is not None}
    if unknown := sorted(set(given) - known):
        raise VistokError(f"the sampler '{name}' has no option {', '.join(unknown)}.")
    if "drafter" in known and draft is not None:
        given["drafter"] = str(draft)
    elif draft is not None:
        raise VistokError(f"the sampler '{name}' drafts by itself: leave --draft out.")
    if "codebook" in known:
        if not hasattr(pipe.vq, "quantize"):
            raise VistokError(f"the sampler '{name}' compares codes, and this tokenizer has no codebook of weights.")
        given["codebook"] = pipe.vq.quantize.embedding.weight.detach()  # as LANTERN measured distances
    return cls(**given)


def expand(conditions: Sequence[str | int], n: int) -> list[Sample]:
    """``n`` samples of each condition, numbered in order.

    Raises:
        VistokError: ``n`` is below 1.
    """
    if n < 1:
        raise VistokError(f"the number of pictures must be at least 1, got {n}.")
    return [Sample(i * n + j, condition) for i, condition in enumerate(conditions) for j in range(n)]


def pipeline(
    name: str = "llamagen",
    *,
    checkpoint: str | Path | None = None,
    vq: str | Path | None = None,
    text_encoder: str | Path | None = None,
    size: int | None = None,
    preset: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    tokenizer: str | None = None,
    tokens: int | None = None,
) -> Pipeline:
    """Load everything that a model needs to paint.

    Args:
        name: a model of ``vistok models``; its embedded or published parts are used where no other is named.
        checkpoint: weights of the generator: a path, or a hub id ``owner/name:file``.
        vq: weights of the image tokenizer, likewise.
        text_encoder: folder or hub id of a T5 encoder.
        size: side of the pictures in pixels, for checkpoint files that do not tell.
        preset: shape of a checkpoint file whose name is not a published one, e.g. ``GPT-B``.
        device: ``cpu``, ``cuda`` or ``cuda:1``; the GPU where there is one if None.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        compile: compile the transformer's blocks with ``torch.compile``, on a GPU.

        tokenizer: paint with the embedded generator of this tokenizer's tokens.
        tokens: draw only so many first tokens of each picture, where they are ordered from coarse to fine.

    Raises:
        VistokError: an unknown name, device or dtype, an impossible size or number of tokens, or weights that do not
            fit.
    """
    if dtype not in DTYPES:
        raise VistokError(f"unknown dtype '{dtype}': use one of {', '.join(DTYPES)}.")
    target = _device(device)
    if compile and target.type == "cpu":
        raise VistokError("on a CPU packed weights are faster than compiled blocks: leave --compile out.")
    if tokenizer is not None:
        name = _generator_of(tokenizer)
    own = card(name) if checkpoint is None else card_of_file(checkpoint)
    found = own or card(name)
    suits = {} if own is None else {"guidance": own.guidance, "temperature": own.temperature, "sampling": own.sampling}
    suits = {key: value for key, value in suits.items() if value is not None}
    if found.family == "mar":
        return _continuous(found, checkpoint, vq, preset, size, target, DTYPES[dtype], suits)
    if found.family != "llamagen":
        raise VistokError(f"'{name}' is a model for {found.task}, it does not paint: see `vistok models`.")
    image_tokenizer = _image_tokenizer(_part(vq, found.parts.get("vq"), "vq"))
    can = image_tokenizer.capabilities
    overrides = {} if size is None else {"block_size": _block_size(size, can.multiple)}
    source = checkpoint if checkpoint is not None else found.name
    model = LlamaGen.from_pretrained(source, preset, **overrides)
    if size is not None and model.config.block_size != overrides["block_size"]:
        side = can.image_size or model.config.grid * can.multiple
        raise VistokError(f"'{source}' paints {side}x{side} pictures: leave --size out, or give {side}.")
    if model.config.vocab_size != can.codebook_size or model.config.layout != can.layout:
        raise VistokError(
            f"the generator knows {model.config.vocab_size} codes in a {model.config.layout} but the tokenizer has "
            f"{can.codebook_size} in a {can.layout}: name the tokenizer that belongs to it with --vq."
        )
    if tokens is not None:
        model.stop_at(tokens)
    encoder = _text_encoder(model, source, text_encoder, found)
    model = model.to(target, DTYPES[dtype])
    if target.type == "cpu":
        pack_linears(model)  # the same seed gives the same picture in any batch
    if compile:
        model.compile_blocks()
    if encoder is not None:
        encoder = encoder.to(target).eval()
    return Pipeline(model, image_tokenizer.to(target), encoder, found.name, **suits)


def _continuous(
    found, checkpoint, vq, preset, size, target: torch.device, dtype: torch.dtype, suits: Mapping
) -> Pipeline:
    """A MAR, by its averaged weights, and its autoencoder."""
    from vistok.models.mar import MAR
    from vistok.tokenizers.kl import KLAutoencoder
    from vistok.zoo import resolve

    part = _part(vq, found.parts.get("vq"), "vq")
    autoencoder = KLAutoencoder.from_pretrained(part, None if resolve(part).is_dir() else "KL-16")
    model = MAR.from_pretrained(checkpoint or found.name, preset, prefer_ema=True)
    config = model.config
    if size is not None and size != config.img_size:
        raise VistokError(f"'{found.name}' paints {config.img_size}x{config.img_size} pictures: leave --size out.")
    if (config.vae_embed_dim, config.vae_stride) != (autoencoder.config.z_channels, autoencoder.config.downsample):
        raise VistokError(
            f"the generator draws latents of {config.vae_embed_dim} channels for {config.vae_stride} pixels but the "
            f"autoencoder has {autoencoder.config.z_channels} for {autoencoder.config.downsample}: name the one that "
            "belongs to it with --vq."
        )
    model = model.to(target, dtype)
    if target.type == "cpu":
        pack_linears(model)
    return Pipeline(model, autoencoder.to(target), None, found.name, **suits)


def _device(name: str | None) -> torch.device:
    if name is None and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # under `accelerate launch` each process has its own
    try:
        device = torch.device(name or "cpu")
    except RuntimeError:
        raise VistokError(f"unknown device '{name}': use cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise VistokError("there is no CUDA device on this machine: use --device cpu.")
    return device


def _part(given: str | Path | None, of_card: str | None, option: str) -> str | Path:
    if given is None and of_card is None:
        raise VistokError(f"this model comes without its {option} weights: name them with --{option}.")
    return given if given is not None else of_card


def _generator_of(tokenizer: str) -> str:
    """The embedded generator of a tokenizer's tokens."""
    wanted = card(tokenizer).name
    known = {each.parts.get("vq"): each.name for each in cards() if each.embedded and each.family == "llamagen"}
    if wanted not in known:
        raise VistokError(f"no embedded generator paints with '{wanted}': use one of {', '.join(known)}.")
    return known[wanted]


def _image_tokenizer(name: str | Path) -> Tokenizer:
    """A tokenizer of any family from its folder, or a VQ tokenizer from its checkpoint file."""
    from vistok.zoo import resolve

    path = resolve(name)
    return load_tokenizer(str(name)).tokenizer if path.is_dir() else VQTokenizer.from_pretrained(path)


def _block_size(size: int, downsample: int) -> int:
    if size < downsample or size % downsample:
        raise VistokError(f"--size {size} is not a multiple of {downsample}, the pixels of one token.")
    return (size // downsample) ** 2


def _text_encoder(model: LlamaGen, source, given, found) -> TextEncoder | None:
    if model.config.model_type != "t2i":
        return None
    from vistok.models.text_encoder import TextEncoder
    from vistok.zoo import resolve

    if given is None and found.embedded:
        given = resolve(found.name) / "text_encoder"
    encoder = TextEncoder.from_pretrained(_part(given, None, "text-encoder"), dtype=torch.float32)
    if encoder.dim != model.config.caption_dim:
        raise VistokError(
            f"'{source}' reads text features of width {model.config.caption_dim} but '{given}' gives {encoder.dim}: "
            "name the text encoder that it was trained with."
        )
    return encoder
