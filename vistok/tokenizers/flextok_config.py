"""Shapes of FlexTok, and the reader of its published configuration.

The published ``config.json`` names the Python classes that its own loader builds, any of which could run code. This
reader builds nothing that a file names: it refuses class names that are not on its list, takes a few plain values, and
takes every width and depth from the shapes of the weights.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vistok.errors import VistokError
from vistok.tokenizers.kl import KLConfig
from vistok.zoo.checkpoint import shard_files, weights_file
from vistok.zoo.pretrained import CONFIG_FILE

PUBLISHED_LEVELS = (8, 8, 8, 5, 5, 5)
# The parts of which published networks consist, by the last component of the name in their configuration.
KNOWN_CLASSES = frozenset(
    {
        "FlexTok",
        "FlexTokFromHub",
        "StableDiffusionVAE",
        "AutoencoderKL",
        "FSQ",
        "MinRFPipeline",
        "MinRFNoiseModule",
        "MomentumBuffer",
        "SequentialModuleDictWrapper",
        "PositionalEmbedding",
        "PositionalEmbeddingAdder",
        "DictKeyFilter",
        "PerSampleOp",
        "PerSampleReducer",
        "channels_first_to_last",
        "channels_last_to_first",
        "FlexTransformer",
        "FlexTransformerDecoder",
        "MaskedNestedDropout",
        "TimestepEmbedder",
        "Registers1D",
        "PatchEmbedder",
        "LearnedNullCond",
        "LinearLayer",
        "BlockWiseSequencePacker",
        "SequenceUnpacker",
        "LinearHead",
        "ToPatchesLinearHead",
        "MLPHead",
        "FlexBlock",
        "FlexBlockAdaLN",
        "Fp32LayerNorm",
        "LayerNorm",
        "GatedMlp",
        "FlexAttention",
        "FlexSelfAttention",
        "SiLU",
        "partial",
    }
)


@dataclass(frozen=True)
class FlexTokConfig:
    """Shape of a FlexTok tokenizer.

    Attributes:
        encoder, decoder: width and depth of the two transformers.
        head_dim: width of an attention head.
        registers: tokens N.
        levels: of the finite scalar quantizer.
        latent_channels, latent_size: shape of the maps that the transformers read and paint.
        patch: side of a patch of such a map.
        time_features: sines and cosines of the time.
        groups: sets of modulations in a decoder block.
        modulated_head: the last layer is modulated by the time.
        repa_layer: decoder block whose patches are aligned with a vision network in training.
        null_probability: share of pictures that train the unconditional velocity.
        length_law: of nested dropout; see ``sample_lengths``.
        time_shift: by which the odds of a training time being late are multiplied (arXiv 2403.03206, section 5.3.2);
            above 1 more of the training is about noisy maps, where it is decided what will be painted.
        vae: maps are latents of a diffusers ``AutoencoderKL`` inside; without it they are the pictures themselves.
        vae_widths: its channels at each resolution.
        vae_scaling: by which its latents are multiplied.
        kl: shape of a ``KLAutoencoder`` inside, whose latents the maps then are in place of the VAE's.
    """

    encoder: tuple[int, int] = (1152, 18)
    decoder: tuple[int, int] = (1792, 28)
    head_dim: int = 64
    registers: int = 256
    levels: tuple[int, ...] = PUBLISHED_LEVELS
    latent_channels: int = 16
    latent_size: int = 32
    patch: int = 2
    time_features: int = 256
    groups: int = 2
    modulated_head: bool = True
    repa_layer: int = 1
    null_probability: float = 0.2
    length_law: str = "uniform"
    time_shift: float = 1.0
    vae: bool = True
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    vae_scaling: float = 0.18215
    kl: dict[str, Any] | None = None

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.latent_size // self.patch

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a map."""
        return self.latent_channels, self.latent_size, self.latent_size

    @property
    def image_size(self) -> int:
        """Side of the pictures."""
        if self.kl is not None:
            return self.latent_size * KLConfig(**self.kl).downsample
        return self.latent_size * (2 ** (len(self.vae_widths) - 1) if self.vae else 1)


PRESETS: dict[str, FlexTokConfig] = {
    "FlexTok-d12-d12": FlexTokConfig((768, 12), (768, 12)),
    "FlexTok-d18-d18": FlexTokConfig((1152, 18), (1152, 18)),
    "FlexTok-d18-d28": FlexTokConfig(),
}


def parse_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The configuration that published safetensors files carry in their header, as Python or JSON literals."""
    parsed: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            parsed[key] = json.loads(text)
        except ValueError:
            try:
                parsed[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                parsed[key] = text
    return parsed


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a nested configuration."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _entries(value)


def check_classes(tree: Any) -> None:
    """Raise VistokError if a configuration names a class that published networks do not consist of."""
    for key, value in _entries(tree):
        if key == "_target_" and str(value).rpartition(".")[2] not in KNOWN_CLASSES:
            raise VistokError(
                f"the configuration names '{value}', which is no part of a published FlexTok: nothing was built "
                "from it; take the file from its publisher."
            )


def _find(tree: Any, name: str, default: Any) -> Any:
    return next((value for key, value in _entries(tree) if key == name), default)


def from_published(tree: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> FlexTokConfig:
    """The shape of published weights.

    Args:
        tree: their configuration, of which only plain values are read.
        shapes: of the weights by key.

    Raises:
        VistokError: a class is named that these networks do not have, or a weight that tells the shape is absent.
    """
    check_classes(tree)
    enc, dec = "encoder.module_dict.enc_", "decoder.module_dict.dec_"
    try:
        encoder_width, patch_values = shapes[enc + "patch_emb.patch_proj.weight"]
        registers = shapes[enc + "register_module.registers"][0]
        grid = shapes[enc + "posemb_module.posembs"][-1]
        code_dim = shapes[enc + "to_latents.proj.weight"][0]
        decoder_width, features = shapes[dec + "time_embedder.mlp.0.weight"]
        modulations = shapes[dec + "transformer.blocks.0.adaLN_modulation.1.weight"][0]
    except KeyError as missing:
        raise VistokError(f"the weights lack {missing}, so they are not those of a FlexTok tokenizer.") from None
    levels = tuple(_find(tree.get("regularizer"), "levels", PUBLISHED_LEVELS))
    if len(levels) != code_dim:
        raise VistokError(f"the configuration has {len(levels)} FSQ levels, the weights {code_dim} code channels.")
    vae_input = shapes.get("vae.vae.decoder.conv_in.weight")
    vae = vae_input is not None
    channels = vae_input[1] if vae else _find(tree.get("vae"), "latent_channels", FlexTokConfig.latent_channels)
    patch = math.isqrt(patch_values // channels)
    return FlexTokConfig(
        (encoder_width, _depth(shapes, enc)),
        (decoder_width, _depth(shapes, dec)),
        head_dim=_find(tree.get("encoder"), "head_dim", FlexTokConfig.head_dim),
        registers=registers,
        levels=levels,
        latent_channels=channels,
        latent_size=grid * patch,
        patch=patch,
        time_features=features,
        groups=modulations // (6 * decoder_width),
        modulated_head=dec + "to_patches.adaLN_modulation.1.weight" in shapes,
        length_law=_find(tree.get("decoder"), "size_sampling_mode", FlexTokConfig.length_law),
        vae=vae,
        vae_widths=_vae_widths(shapes) if vae else FlexTokConfig.vae_widths,
        vae_scaling=_find(tree.get("vae"), "scaling_factor", FlexTokConfig.vae_scaling),
    )


def _depth(shapes: Mapping[str, torch.Size], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"transformer\.blocks\.(\d+)\.")
    return 1 + max((int(match[1]) for key in shapes if (match := pattern.match(key))), default=-1)


def _vae_widths(shapes: Mapping[str, torch.Size]) -> tuple[int, ...]:
    pattern = re.compile(r"vae\.vae\.encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    widths = {int(match[1]): shape[0] for key, shape in shapes.items() if (match := pattern.fullmatch(key))}
    return tuple(widths[i] for i in sorted(widths))


def is_published(config: Path) -> bool:
    """Returns whether a ``config.json`` is of the published kind, which names classes.

    One that is absent counts as published: then it stands in the header of the weights.
    """
    try:
        return "_target_" in config.read_text(encoding="utf-8")
    except OSError:
        return True


def published_tree(path: Path) -> dict[str, Any]:
    """Returns the published configuration: the file beside the weights, or else the entry of their header.

    Args:
        path: folder of the weights, or their file.

    Raises:
        VistokError: the file is not a JSON object.
    """
    from safetensors import safe_open

    if path.is_dir() and (path / CONFIG_FILE).exists():
        try:
            tree = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise VistokError(f"'{path / CONFIG_FILE}' is not a JSON object: take the file from its publisher.")
        return tree
    weights = shard_files(weights_file(path) if path.is_dir() else path)[0]
    with safe_open(weights, framework="pt") as file:
        return parse_metadata(file.metadata() or {})
