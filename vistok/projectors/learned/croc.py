"""Croc (arXiv 2410.14332): visual tokens are replaced by prompt tokens, and a multimodal model learns to restore them.

Parts of the pre-training stage between the projector's and the instructions': a pool of prompt tokens, the matching
that says which replaces which visual token, a mask under which visual tokens see each other, the head that
reconstructs them, and its loss. ``reference=True`` stands for what the released code does instead of the paper: nearest
prompt tokens, with repetition, and a mask that opens the whole prompt. Published key layout (``model.mask_token`` and
``transform_block.*`` of a checkpoint).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vistok.errors import VistokError

IGNORE = -100
BETA = 0.01  # where smooth L1 turns from square to linear
IMAGE_WEIGHT = 10.0
_POOL, _HEAD = "model.mask_token", "transform_block."  # in a checkpoint
_NORMALIZED = "normalize_visual_tokens"  # in a configuration


def normalize_visual(tokens: Tensor) -> Tensor:
    """Visual tokens as Croc's language model reads them, at inference too: of length one each, [..., D]."""
    return F.normalize(tokens, dim=-1)


def normalize_projector(model: Any) -> None:
    """Let a LLaVA of transformers read its visual tokens normalised, as every Croc checkpoint needs; its configuration
    remembers it, so that :func:`restore_normalization` does the same after loading."""
    if not getattr(model.config, _NORMALIZED, False):
        setattr(model.config, _NORMALIZED, True)
        restore_normalization(model)


def restore_normalization(model: Any) -> None:
    """Normalise the visual tokens of a loaded LLaVA if it was saved as one that does; else nothing."""
    if getattr(model.config, _NORMALIZED, False):
        projector = model.model.multi_modal_projector
        projector.register_forward_hook(lambda module, args, out: normalize_visual(out))


def read_croc(path: str | Path) -> tuple[PromptPool, Reconstruction]:
    """Pool and head of a published checkpoint; the rest of it is a LLaVA's.

    Args:
        path: the file with ``model.mask_token`` and ``transform_block.*``.

    Raises:
        VistokError: the file lacks one of their tensors, or has unexpected ones among them.
    """
    from vistok.zoo.checkpoint import load_strict, read_state_dict

    state = read_state_dict(path)
    head = {key.removeprefix(_HEAD): value for key, value in state.items() if key.startswith(_HEAD)}
    if _POOL not in state or "position_embeddings.weight" not in head:
        raise VistokError(f"'{path}' holds no pool and head of Croc: look for the file with '{_POOL}'.")
    pool = PromptPool(*state[_POOL].shape)
    load_strict(pool, {"mask_token": state[_POOL]}, str(path))
    tokens, width = head["position_embeddings.weight"].shape
    inner = head.get("layers.0.intermediate.dense.weight", head["position_embeddings.weight"])
    module = Reconstruction(width, tokens, intermediate=len(inner))
    load_strict(module, head, str(path))
    return pool, module


def croc_state(pool: PromptPool, head: Reconstruction) -> dict[str, Tensor]:
    """Pool and head under the published names."""
    return {_POOL: pool.mask_token.data} | {f"{_HEAD}{key}": value for key, value in head.state_dict().items()}


class PromptPool(nn.Module):
    """The pool of prompt tokens.

    Args:
        size: how many; 2048 in the released model.
        width: width D of the language model.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(size, width))

    @torch.no_grad()
    def match(self, tokens: Tensor, chosen: Tensor, reference: bool = False) -> Tensor:
        """Which prompt token replaces each visual token.

        By default the assignment one to one that maximises the summed cosine; where more tokens are chosen than the
        pool holds, the rest stay. With ``reference`` the nearest by Euclidean distance, with repetition.

        Args:
            tokens: normalised visual tokens [B, N, D].
            chosen: which may be replaced, bool [B, N].
            reference: as the released code does.

        Returns:
            int64 [B, N], -1 where a token stays.
        """
        index = torch.full(chosen.shape, -1, dtype=torch.int64, device=tokens.device)
        pool = self.mask_token
        for row in range(len(tokens)):
            places = chosen[row].nonzero()[:, 0]
            if reference:
                index[row, places] = torch.cdist(tokens[row, places], pool).argmin(-1)
                continue
            cosine = normalize_visual(tokens[row, places]) @ normalize_visual(pool).T
            rows, columns = linear_sum_assignment(cosine.double().cpu().numpy(), maximize=True)
            index[row, places[torch.as_tensor(rows, device=places.device)]] = torch.as_tensor(columns).to(index)
        return index

    def replace(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Visual tokens [B, N, D] with those that ``index`` of :meth:`match` names from the pool in their places."""
        return torch.where((index >= 0)[..., None], self.mask_token[index.clamp(min=0)].to(tokens.dtype), tokens)


def choose(batch: int, tokens: int, keep: int, generator: torch.Generator | None = None) -> Tensor:
    """Tokens that are to be replaced: all of each picture but ``keep`` drawn ones, bool [batch, tokens].

    Raises:
        VistokError: ``keep`` is negative or exceeds the tokens.
    """
    if not 0 <= keep <= tokens:
        raise VistokError(f"{keep} visual tokens cannot stay of {tokens}: name 0 to {tokens}.")
    return torch.rand(batch, tokens, generator=generator).argsort(1).argsort(1) >= keep


class Spliced(NamedTuple):
    """A prompt with its visual tokens in place: embeddings [B, L, D], labels [B, L], who is there int64 [B, L], and
    which are visual bool [B, L]."""

    embeds: Tensor
    labels: Tensor
    attention_mask: Tensor
    image_positions: Tensor


def splice(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    embeddings: Tensor,
    visual: Tensor,
    image_token: int = -200,
) -> Spliced:
    """Put the visual tokens of each row where its one image token stands; rows are padded on the right.

    Args:
        input_ids, attention_mask, labels: int64 [B, S].
        embeddings: of the vocabulary [V, D].
        visual: [B, N, D].
        image_token: what stands for the picture in ``input_ids``.

    Raises:
        VistokError: a row has no image token, or several.
    """
    rows = []
    for ids, there, label, tokens in zip(input_ids, attention_mask.bool(), labels, visual, strict=True):
        ids, label = ids[there], label[there]
        at = (ids == image_token).nonzero()[:, 0].tolist()
        if len(at) != 1:
            raise VistokError(f"a prompt has {len(at)} image tokens: give each row exactly one picture.")
        before, behind = slice(0, at[0]), slice(at[0] + 1, None)
        embeds = torch.cat([embeddings[ids[before]], tokens.to(embeddings.dtype), embeddings[ids[behind]]])
        none = label.new_full((len(tokens),), IGNORE)
        image = torch.zeros(len(embeds), dtype=torch.bool, device=ids.device)
        image[at[0] : at[0] + len(tokens)] = True
        rows.append((embeds, torch.cat([label[before], none, label[behind]]), torch.ones_like(image).long(), image))
    padding = (0.0, IGNORE, 0, False)
    pad = nn.utils.rnn.pad_sequence
    return Spliced(
        *(pad(list(c), True, padding_value=p) for c, p in zip(zip(*rows, strict=True), padding, strict=True))
    )


def mixed_mask(
    image_positions: Tensor, attention_mask: Tensor, labels: Tensor | None = None, reference: bool = False
) -> Tensor:
    """Who may see whom: visual tokens each other, all else what stands before it.

    Args:
        image_positions: bool [B, L].
        attention_mask: int64 [B, L], 0 for padding, which nobody sees.
        labels: int64 [B, L], ``-100`` before the answer; only ``reference`` reads them.
        reference: as the released code does: every key before the first label is open to every query, text and, on the
            left, padding included.

    Returns:
        bool [B, L, L], True where the query (row) may see the key (column).

    Raises:
        VistokError: ``reference`` without labels.
    """
    length = image_positions.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=image_positions.device).tril()
    there = attention_mask.bool()[:, None]
    if not reference:
        return (causal | (image_positions[:, :, None] & image_positions[:, None])) & there
    if labels is None:
        raise VistokError("the released mask opens what stands before the answer: pass labels with it.")
    return (causal & there) | ((labels != IGNORE).cumsum(1) == 0)[:, None]


class Reconstruction(nn.Module):
    """The head that restores visual tokens from the last hidden states: positions, one BERT layer, a linear map.

    Args:
        width: width D of the language model.
        tokens: visual tokens N of a picture.
        heads: of the attention; of width 64 each if None, as published.
        intermediate: width of the feed-forward part; 4 D if None.
        dropout: in training.
    """

    def __init__(
        self,
        width: int,
        tokens: int = 576,
        heads: int | None = None,
        intermediate: int | None = None,
        layer_norm_eps: float = 1e-12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertLayer

        config = BertConfig(
            hidden_size=width,
            num_attention_heads=max(1, width // 64) if heads is None else heads,
            intermediate_size=4 * width if intermediate is None else intermediate,
            layer_norm_eps=layer_norm_eps,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            attn_implementation="sdpa",
        )
        self.position_embeddings = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList([BertLayer(config)])
        self.resize = nn.Linear(width, width)

    def forward(self, hidden: Tensor, image_positions: Tensor) -> Tensor:
        """Visual tokens as restored, [B, N, D], from the last hidden states [B, L, D] and which are visual [B, L].

        Raises:
            VistokError: a row has another number of visual tokens than the head.
        """
        tokens = self.position_embeddings.num_embeddings
        counts = set(image_positions.sum(1).tolist())
        if counts != {tokens}:
            raise VistokError(
                f"this head restores {tokens} visual tokens of a picture, and rows have {sorted(counts)}: "
                f"pass pictures of {tokens} tokens."
            )
        states = hidden[image_positions].view(len(hidden), tokens, -1) + self.position_embeddings.weight
        for layer in self.layers:
            out = layer(states)
            states = out[0] if isinstance(out, tuple) else out
        return self.resize(states)


def reconstruction_loss(restored: Tensor, targets: Tensor, beta: float = BETA, weight: float = IMAGE_WEIGHT) -> Tensor:
    """Weighted smooth L1 of all visual tokens, replaced or not, to the normalised ones; no gradient to the targets."""
    return weight * F.smooth_l1_loss(restored.float(), targets.detach().float(), beta=beta)


def caption_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the next token, from logits [B, L, V] and labels int64 [B, L], ``-100`` where none is told."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE)
