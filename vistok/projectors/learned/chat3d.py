"""A language model that reads the objects of a 3D scene by identifier (Chat-3D v2, arXiv 2312.08168), whole.

PointNet gives each object a feature, the object tokens make tokens of it, and a LLaMA reads them behind the identifiers
and answers with words and identifiers. It is one of its own, or that of a LLaVA with adapters, and then what is stored
is the difference to it (see ``vistok.models.extension``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok.data.scenes.vqa import ASSISTANT, BEGIN, END, PAD, USER
from vistok.data.scenes3d import locations, mean_colours
from vistok.data.scenes3d.language import NOTHING, named, token_ids, vocabulary
from vistok.errors import VistokError
from vistok.files import write_json
from vistok.models.extension import Extension, is_extension, load_extended, save_extension
from vistok.models.vision.pointnet import PointNet
from vistok.projectors.learned.objects import AttributeRelationTokens, interleave
from vistok.zoo.adapter import base_hashes

CONFIG_FILE, WEIGHTS_FILE = "chat3d.json", "model.safetensors"
LONGEST_ANSWER = 9  # eight identifiers and the end
KIND = "chat3d"  # of the extension of a LLaVA
_BELOW = ("language.model.layers.", "language.model.norm.")  # what is the LLaVA's own
_TEXT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Chat3DConfig:
    """Shape of a :class:`Chat3D`.

    Attributes:
        text: entries of LlamaConfig; none where the language model is a LLaVA's.
        side: of a room, in the unit of the scans that the published model reads, which is the metre. At a side of 1 the
            tenth of a centre's map that goes into a relation-aware token is lost beside what attention puts there.
        features: width of PointNet's feature.
        attributes, layers, heads, head_dim: of the object tokens.
        norm: length of the tokens; 200 and 50 are those of a LLaMA of 7B.
        relations: whether objects have relation-aware tokens.
        identifiers: whether objects stand behind their identifiers; without, the language model counts them.
    """

    text: dict[str, Any] = field(default_factory=dict)
    side: float = 8.0
    features: int = 128
    attributes: int = 32
    layers: int = 1
    heads: int = 8
    head_dim: int = 16
    norm: float = 1.0
    relations: bool = True
    identifiers: bool = True


def _special() -> dict[str, int]:
    ids = token_ids()
    return {"pad_token_id": ids[PAD], "bos_token_id": ids[BEGIN], "eos_token_id": ids[END]}


def _language_model(text: Mapping[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**text, "vocab_size": len(vocabulary()), **_special()}))


def _borrowed(below: Any, words: Mapping[str, int]) -> Any:
    """A causal language model around that of a LLaVA; rows of words that the LLaVA lacks are the mean of its others."""
    tables = below.get_input_embeddings().weight.detach(), below.get_output_embeddings().weight.detach()
    text = below.config.text_config
    shell = _language_model({**text.to_dict(), "num_hidden_layers": 0})
    shell.config.num_hidden_layers = text.num_hidden_layers
    shell.model = below.model.language_model
    shell.model.embed_tokens = nn.Embedding(len(vocabulary()), tables[0].shape[1])
    with torch.no_grad():
        for new, old in zip((shell.model.embed_tokens, shell.lm_head), tables, strict=True):
            mean = old.mean(0)
            new.weight.copy_(torch.stack([old[words[w]] if w in words else mean for w in vocabulary()]))
    return shell


class Chat3D(nn.Module):
    """PointNet, object tokens and language model.

    Args:
        config: its shape.
        below: a LLaVA whose language model reads; it gets tables of words of its own.
        words: the numbers of the words that the LLaVA knows.
    """

    def __init__(
        self, config: Chat3DConfig, below: nn.Module | None = None, words: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.language = _language_model(config.text) if below is None else _borrowed(below, words or {})
        self.encoder = PointNet(config.features)
        self.tokens = AttributeRelationTokens(
            self.language.config.hidden_size,
            config.features,
            config.attributes,
            config.layers,
            config.heads,
            config.head_dim,
            config.norm,
            config.norm,
        )
        self.register_buffer("first_identifier", torch.tensor(token_ids()[named(0)]), persistent=False)

    def streams(self, clouds: Tensor, present: Tensor) -> list[Tensor]:
        """Returns attribute- and relation-aware tokens [B, N, D] of clouds [B, N, P, 6], of which some are present."""
        locs = locations(clouds)
        features = self.encoder(clouds, locs[..., :3])
        centres, sizes = (locs * self.config.side).split(3, -1)
        metres = torch.cat([centres - self.config.side / 2, sizes], -1)  # from the middle of the room
        return self.tokens(features, metres, mean_colours(clouds), present)

    def prefix(self, clouds: Tensor, present: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what stands before a question: embeddings [B, P, D], and which of them are there, bool [B, P].

        Args:
            clouds: [B, N, P, 6].
            present: bool [B, N].
            names: number of each object's identifier, int64 [B, N].
        """
        return self.arrange(self.streams(clouds, present), present, names)

    def arrange(self, streams: list[Tensor], present: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what :meth:`prefix` does, from the streams; objects stand in the order of their identifiers."""
        embed = self.language.get_input_embeddings()
        streams = streams if self.config.relations else streams[:1]
        order = names.masked_fill(~present, names.shape[1]).argsort(1)
        order = order.masked_fill(~present.gather(1, order), -1)
        if self.config.identifiers:
            objects, length = interleave(embed(names + self.first_identifier), streams, order)
        else:
            objects, length = interleave(streams[0], streams[1:], order)
        ids = token_ids()
        opening = embed(torch.tensor([[ids[BEGIN], ids[USER]]], device=objects.device)).expand(len(objects), -1, -1)
        there = torch.arange(objects.shape[1], device=objects.device) < length[:, None]
        there = torch.cat([there.new_ones(len(objects), opening.shape[1]), there], 1)
        return torch.cat([opening.to(objects.dtype), objects], 1), there

    @torch.no_grad()
    def answer(self, clouds: Tensor, names: Tensor, question: str) -> str:
        """Returns what the model says about one scene.

        Args:
            clouds: points of each object [N, P, 6].
            names: number of each object's identifier, int64 [N].
            question: in the words of ``vistok.data.scenes3d``, e.g. ``what color is <OBJ003> ?``.

        Raises:
            VistokError: the question has a word that is not known, or names an identifier that no object has.
        """
        ids = token_ids()
        words = question.replace("?", " ?").split()
        known = {named(int(number)) for number in names}
        for word in words:
            if word not in ids:
                raise VistokError(f"the word '{word}' is not among the {len(ids)} of this model: ask with known words.")
            if word.startswith("<OBJ") and word not in known:
                raise VistokError(f"no object of the scene is {word}: it has {', '.join(sorted(known))}.")
        device = self.first_identifier.device
        present = torch.ones(1, len(clouds), dtype=torch.bool, device=device)
        embeds, _ = self.prefix(clouds[None].to(device), present, names[None].to(device))
        asked = torch.tensor([[*(ids[word] for word in words), ids[ASSISTANT]]], device=device)
        embeds = torch.cat([embeds, self.language.get_input_embeddings()(asked).to(embeds.dtype)], 1)
        said = self.language.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64, device=device),
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
        )[0]
        spoken = [vocabulary()[token] for token in said.tolist()]
        return " ".join(word for word in spoken if word not in (PAD, BEGIN, END)) or NOTHING

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``chat3d.json`` and the weights, all of them."""
        from vistok.zoo.checkpoint import write_state_dict

        text = {entry: getattr(self.language.config, entry) for entry in _TEXT}
        write_json(Path(folder) / CONFIG_FILE, replace(self.config, text=text))
        write_state_dict(Path(folder) / WEIGHTS_FILE, self.state_dict())

    def save_difference(self, folder: str | Path, base: str) -> None:
        """Writes what a model on a LLaVA adds to it, in bfloat16, but for adapters, which ``save_lora`` writes.

        Args:
            folder: where to.
            base: the LLaVA's name, folder or hub id.
        """
        own = {key: value.bfloat16() for key, value in self.state_dict().items() if not key.startswith(_BELOW)}
        save_extension(Path(folder), Extension(KIND, base, base_hashes(base), (), asdict(self.config)), own)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Chat3D:
        """Returns an embedded model or that of a folder, in float32 and evaluation mode.

        Raises:
            VistokError: the name leads nowhere, to no such model, or to one from before rooms were counted in metres.
        """
        from vistok.zoo.checkpoint import load_strict, read_state_dict
        from vistok.zoo.registry import resolve

        folder = resolve(name)
        if is_extension(folder):
            below, processor, extension, state = load_extended(name, KIND)
            module = cls(Chat3DConfig(**extension.options), below, processor.tokenizer.get_vocab())
            state |= {key: value for key, value in module.state_dict().items() if key.startswith(_BELOW)}
        else:
            try:
                entries = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
                module = cls(Chat3DConfig(**entries))
            except (OSError, ValueError, TypeError) as error:
                raise VistokError(f"'{name}' holds no 3D chat model: name a folder with {CONFIG_FILE}.") from error
            if "side" not in entries:  # such models read places in another unit and from another origin
                raise VistokError(
                    f"'{folder / CONFIG_FILE}' does not say the 'side' of a room, so this model was trained on places "
                    "in another unit than this version's metres: train it again with recipes/chat3d-mini.yaml."
                )
            state = read_state_dict(folder / WEIGHTS_FILE)
        load_strict(module, state, str(folder))
        return module.float().eval().requires_grad_(False)
