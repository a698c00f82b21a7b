"""Chat-3D v2 (arXiv 2312.08168): objects of a segmented scene as tokens of a language model, named by identifiers.

``AttributeRelationTokens`` is the paper's version: an attribute-aware and a relation-aware token for each object.
``ObjectTokens`` is the later release: object, scene and image tokens. Both give a list of streams of tokens, which
``interleave`` puts behind the identifiers. Published key layouts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError


def identifier(number: int, digits: int = 3) -> str:
    """The word that names an object, e.g. ``<OBJ007>``."""
    return f"<OBJ{number:0{digits}d}>"


def mentioned(text: str) -> list[int]:
    """The identifiers that a text names, in order, with repetitions."""
    return [int(number) for number in re.findall(r"<OBJ(\d+)>", text)]


def assign(text: str, assigned: Sequence[int]) -> str:
    """A text about objects 0, 1, ... with the identifiers that were assigned to them.

    Raises:
        VistokError: the text names an object that has none.
    """

    def renamed(match: re.Match[str]) -> str:
        number = int(match[1])
        if number >= len(assigned):
            raise VistokError(f"'{match[0]}' names none of the {len(assigned)} objects of the scene: leave it out.")
        return identifier(int(assigned[number]), len(match[1]))

    return re.sub(r"<OBJ(\d+)>", renamed, text)


def recover(text: str, assigned: Sequence[int]) -> str:
    """The inverse of :func:`assign`; an identifier that was never assigned is reported.

    Raises:
        VistokError: the text names one.
    """
    owner = {int(name): number for number, name in enumerate(assigned)}
    if unknown := sorted(set(mentioned(text)) - owner.keys()):
        raise VistokError(f"the answer names {identifier(unknown[0])}, which no object of the scene has.")
    return re.sub(r"<OBJ(\d+)>", lambda match: identifier(owner[int(match[1])], len(match[1])), text)


class _ObjectAttention(nn.Module):
    """Multi-head attention among objects, in the published names."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.w_qs = nn.Linear(width, heads * head_dim)
        self.w_ks = nn.Linear(width, heads * head_dim)
        self.w_vs = nn.Linear(width, heads * head_dim)
        self.fc = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.w_qs, self.w_ks, self.w_vs))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
        return self.fc(mixed.transpose(1, 2).flatten(2))


class _RelationLayer(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = _ObjectAttention(width, heads, head_dim)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        return x + self.self_attn(self.norm1(x), there)


class _RelationModule(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class AttributeRelationTokens(nn.Module):
    """Attribute-aware and relation-aware tokens of the paper.

    Args:
        width: width D of the language model.
        features: width of an object's feature.
        attributes: width of the embeddings of size and colour.
        layers, heads, head_dim: of the attention among objects.
        attribute_norm, relation_norm: length of the tokens.
    """

    def __init__(
        self,
        width: int,
        features: int = 1024,
        attributes: int = 512,
        layers: int = 1,
        heads: int = 8,
        head_dim: int = 64,
        attribute_norm: float = 200.0,
        relation_norm: float = 50.0,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norms = (attribute_norm, relation_norm)
        self.coord_proj = nn.Sequential(nn.Linear(3, attributes))
        self.color_proj = nn.Sequential(nn.Linear(3, attributes))
        self.pos_proj = nn.Sequential(nn.Linear(3, width))
        self.object_proj = nn.Sequential(
            nn.Linear(features + 2 * attributes, width),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.LayerNorm(width, eps=layer_norm_eps),
            nn.Linear(width, width),
        )
        relation = [_RelationLayer(width, heads, head_dim, layer_norm_eps) for _ in range(layers)]
        self.relation_module = _RelationModule(relation)

    def forward(
        self, features: Tensor, locs: Tensor, colours: Tensor, mask: Tensor, detach: bool = False
    ) -> list[Tensor]:
        """Attribute tokens and relation tokens.

        Args:
            features: [B, N, C].
            locs: centre and size of each object [B, N, 6].
            colours: weight and RGB of the Gaussians of its colours [B, N, K, 4].
            mask: which objects are there [B, N].
            detach: no gradient of the relation tokens reaches the projected features, as in the second stage.

        Returns:
            Two tensors [B, N, D], of constant norm; relation tokens count only where an object is.
        """
        colour = (colours[..., :1] * self.color_proj(colours[..., 1:])).sum(-2)
        projected = self.object_proj(torch.cat([features, self.coord_proj(locs[..., 3:]), colour], -1))
        base = projected.detach() if detach else projected
        there = mask.bool()
        seen = base + 0.1 * self.pos_proj(locs[..., :3])
        for layer in self.relation_module.layers:
            seen = layer(seen, there)
        return [self.norms[0] * F.normalize(projected, dim=-1), self.norms[1] * F.normalize(seen - base, dim=-1)]


def attribute_loss(attributes: Tensor, words: Tensor, words_mask: Tensor) -> Tensor:
    """``1 - cos`` of attribute tokens [B, D] and the mean embedding of their captions' words [B, T, D], mask [B, T]."""
    there = words_mask[..., None].to(words.dtype)
    mean = (words * there).sum(1) / there.sum(1).clamp(min=1)
    return (1 - F.cosine_similarity(attributes, mean, dim=-1)).mean()


class _FourierPlaces(nn.Module):
    """Fourier features of centres, scaled to the box of the scene's objects."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("gauss_B", torch.randn(3, width // 2))

    def forward(self, centres: Tensor, there: Tensor) -> Tensor:
        missing = ~there[..., None]
        low = centres.masked_fill(missing, torch.inf).amin(1, keepdim=True)
        high = centres.masked_fill(missing, -torch.inf).amax(1, keepdim=True)
        unit = ((centres - low) / (high - low + 1e-7)).masked_fill(missing, 0.0)
        angles = 2 * math.pi * unit @ self.gauss_B
        return torch.cat([angles.sin(), angles.cos()], -1)


class ObjectTokens(nn.Module):
    """Object, scene and image tokens of the later release.

    Args:
        width: width D of the language model.
        features: width of an object's features.
        scene_width, layers, heads, feedforward, activation: of the transformer over the objects.
        scene_token, image_token: whether each object has such a token too.
    """

    def __init__(
        self,
        width: int,
        features: int = 1024,
        scene_width: int = 256,
        layers: int = 3,
        heads: int = 8,
        feedforward: int = 2048,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        scene_token: bool = False,
        image_token: bool = False,
    ) -> None:
        super().__init__()
        self.scene_token, self.image_token = scene_token, image_token

        def projector() -> nn.Sequential:
            return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))

        self.object_proj = projector()
        if image_token:
            self.object_img_proj = projector()
        if scene_token:
            self.scene_init_proj = nn.Sequential(nn.Linear(features, scene_width))
            self.pos_embedding = _FourierPlaces(scene_width)
            self.pos_proj = nn.Sequential(nn.Linear(scene_width, scene_width))
            layer = [
                nn.TransformerEncoderLayer(
                    scene_width, heads, feedforward, 0.05, activation, layer_norm_eps, batch_first=True, norm_first=True
                )
                for _ in range(layers)
            ]
            self.relation_module = _RelationModule(layer)
            self.scene_proj = nn.Sequential(nn.Linear(scene_width, width))

    def forward(
        self, features: Tensor, locs: Tensor, mask: Tensor, image_features: Tensor | None = None
    ) -> list[Tensor]:
        """The streams, [B, N, D] each: object, then scene and image tokens where the model has them.

        Args:
            features, image_features: [B, N, C]; the latter for image tokens.
            locs: centre and size of each object [B, N, 6].
            mask: which objects are there [B, N].

        Raises:
            VistokError: the model has image tokens and there are no image features.
        """
        there = mask.bool()
        features = F.normalize(features, dim=-1)
        streams = [self.object_proj(features)]
        if self.scene_token:
            seen = self.scene_init_proj(features) + self.pos_proj(self.pos_embedding(locs[..., :3], there))
            for layer in self.relation_module.layers:
                seen = layer(seen, src_key_padding_mask=~there)
            streams.append(self.scene_proj(seen))
        if self.image_token:
            if image_features is None:
                raise VistokError("this model has a token for the pictures of each object: pass image_features.")
            streams.append(self.object_img_proj(F.normalize(image_features, dim=-1)))
        return streams


def interleave(identifiers: Tensor, streams: Sequence[Tensor], order: Tensor) -> tuple[Tensor, Tensor]:
    """The objects as the language model reads them: identifier, then the object's tokens, object by object.

    Args:
        identifiers: embedding of each object's identifier [B, N, D].
        streams: tokens of the objects [B, N, D] each.
        order: which object comes when, int64 [B, N]; -1 behind the last.

    Returns:
        [B, N * (1 + streams), D], zero behind each scene's last object, and the lengths int64 [B].
    """
    parts = torch.stack([identifiers, *(stream.to(identifiers.dtype) for stream in streams)], 2)  # [B, N, S, D]
    there = order >= 0
    rows = torch.arange(len(order), device=order.device)[:, None]
    ordered = parts[rows, order.clamp(min=0)] * there[..., None, None]
    ordered = ordered[rows, (~there).long().argsort(dim=1, stable=True)]
    return ordered.flatten(1, 2), there.sum(1) * parts.shape[2]
