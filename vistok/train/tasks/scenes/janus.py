"""Train a small text-to-image model in Janus's layout (arXiv 2410.13848) on scenes' codes.

One causal transformer reads the words of a caption and then draws the codes of its picture, each code going in by an
embedding and an aligner of its own and coming out by a head of its own. Its tokenizer of pictures is an embedded one in
the class's layout, and stays there: the export holds the rest. Its tower for reading pictures is a minimal one that
nothing trains, because the class has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import captions, render, sample_scenes
from vistok.data.scenes.language import vocabulary
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.models.codes.janus_vq import TOKENIZER_PREFIX, janus_vq_config, janus_vq_state
from vistok.models.text_encoder import PAD, UNK
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.options import check_entries, read_options
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task

BEGIN, END, IMAGE, BEGIN_IMAGE, END_IMAGE = "<s>", "</s>", "<image>", "<begin_of_image>", "<end_of_image>"
SPECIAL = (PAD, END, UNK, BEGIN, IMAGE, BEGIN_IMAGE, END_IMAGE)
CHUNK = 32  # scenes that are encoded at a time


def janus_processor(side: int, length: int) -> nn.Module:
    """A processor of captions in words for pictures of ``side`` pixels and ``length`` codes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((*SPECIAL, *vocabulary()))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, ids[BEGIN])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNK,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE, "boi_token": BEGIN_IMAGE, "eoi_token": END_IMAGE},
    )
    pictures = JanusImageProcessor(size={"height": side, "width": side}, min_size=1)
    return JanusProcessor(pictures, tokenizer, num_image_tokens=length)


def build_janus(vq: VQTokenizer, processor: nn.Module, side: int, shape: dict) -> nn.Module:
    """An untrained model of a tokenizer's codes; ``shape`` holds entries of LlamaConfig."""
    from transformers import (
        GenerationConfig,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        LlamaConfig,
    )

    words, width, patch = processor.tokenizer, shape["hidden_size"], vq.config.downsample
    special = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_ratio": 1.0, "depth": 1}
    length = (side // patch) ** 2
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=len(words), **special, **shape),
        vision_config=JanusVisionConfig(
            image_size=side, patch_size=patch, num_image_tokens=length, projection_dim=width, **vision
        ),
        vq_config=janus_vq_config(vq.config, width, side // patch),
        image_token_id=words.image_token_id,
        tie_word_embeddings=True,
    )
    model = JanusForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(janus_vq_state(vq))
    model.model.generation_embeddings.weight.data.copy_(vq.quantize.embedding.weight)
    model.generation_config = GenerationConfig(**special, generation_kwargs={"boi_token_id": words.boi_token_id})
    return model


class JanusObjective(nn.Module):
    """Cross-entropy of image codes given captions, some of which are taken away.

    Args:
        janus: the transformers model.
        pad: the token that stands for a word that was taken away.
        kept: tokens that stay in a caption that was taken away.
        dropout: share of those captions.
    """

    def __init__(self, janus: nn.Module, pad: int, kept: tuple[int, ...], dropout: float):
        super().__init__()
        self.janus, self.pad, self.dropout = janus, pad, dropout
        self.register_buffer("kept", torch.tensor(kept), persistent=False)

    def untold(self, input_ids: Tensor) -> Tensor:
        """Captions as the unconditional rows of guidance have them."""
        return torch.where(torch.isin(input_ids, self.kept), input_ids, self.pad)

    def logits(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, n, K] of codes [B, n] behind captions [B, L]."""
        base = self.janus.model
        words = base.language_model.embed_tokens(input_ids)
        drawn = self.janus.prepare_embeddings_for_image_generation(tokens[:, :-1])
        mask = F.pad(attention_mask, (0, drawn.shape[1]), value=1)
        hidden = base.language_model(inputs_embeds=torch.cat([words, drawn], 1), attention_mask=mask, use_cache=False)
        return base.generation_head(hidden.last_hidden_state[:, words.shape[1] - 1 :])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor):
        if self.training:
            dropped = torch.rand(len(input_ids), 1, device=input_ids.device) < self.dropout
            input_ids = torch.where(dropped, self.untold(input_ids), input_ids)
        logits = self.logits(input_ids, attention_mask, tokens).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), {}


@dataclass(frozen=True)
class JanusData:
    """The section ``data``.

    Attributes:
        seed: of the scenes.
        scenes: how many are drawn; their codes are extracted once.
        size: side of a picture in pixels.
        dropout: share of captions that are taken away, for guidance.
        eval_scenes: held-out scenes.
    """

    seed: int
    scenes: int
    size: int
    dropout: float = 0.1
    eval_scenes: int = 64


@dataclass(frozen=True)
class JanusInit:
    """The section ``init``: the tokenizer, by name."""

    tokenizer: str


SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


class JanusTask(Task):
    """The ``janus`` task: see JanusData and JanusInit; ``model`` holds entries of LlamaConfig."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(JanusData, recipe.data, "data")
        self.init = read_options(JanusInit, recipe.init, "init")
        check_entries(recipe.model, SHAPE, "model")
        check_training_seed(self.data.seed)
        torch.manual_seed(recipe.seed)
        self.vq = VQTokenizer.from_pretrained(self.init.tokenizer).requires_grad_(False)
        self.length = (self.data.size // self.vq.config.downsample) ** 2
        self.processor = janus_processor(self.data.size, self.length)
        janus = build_janus(self.vq, self.processor, self.data.size, recipe.model)
        for part in (janus.model.vqmodel, janus.model.vision_model, janus.model.aligner):
            part.requires_grad_(False)
        words = self.processor.tokenizer
        kept = (words.bos_token_id, words.boi_token_id)
        self.model = JanusObjective(janus, words.pad_token_id, kept, self.data.dropout)
        self.codes = torch.full((self.data.scenes, self.length), -1, dtype=torch.int16)

    @torch.no_grad()
    def _extract(self, seed: int, start: int, count: int) -> Tensor:
        images = render(sample_scenes(count, seed, start), self.data.size)
        return self.vq.encode(images.to(next(self.vq.parameters()).device)).flatten(1).cpu()

    def _tokens(self, start: int, count: int) -> Tensor:
        """Codes of training scenes, extracted in chunks on first use."""
        for chunk in range(start // CHUNK, (start + count - 1) // CHUNK + 1):
            at = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.codes)))
            if self.codes[at.start, 0] < 0:
                self.codes[at] = self._extract(self.data.seed, at.start, at.stop - at.start).to(torch.int16)
        return self.codes[start : start + count].long()

    def _words(self, texts: list[str]) -> dict[str, Tensor]:
        told = self.processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")
        return {"input_ids": told["input_ids"], "attention_mask": told["attention_mask"]}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in order, pass after pass, with captions worded anew in each pass."""
        steps = len(self.codes) // self.recipe.batch_size
        variant, place = divmod(step, steps)
        start, count = place * self.recipe.batch_size + rows.start, rows.stop - rows.start
        told = captions(sample_scenes(count, self.data.seed, start), variant)
        return self._words(told) | {"tokens": self._tokens(start, count)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of held-out scenes, in nats per code, with and without their captions."""
        count, device = self.data.eval_scenes, self.model.kept.device
        tokens = self._extract(HELD_OUT, 0, count).to(device)
        told = {k: v.to(device) for k, v in self._words(captions(sample_scenes(count, HELD_OUT))).items()}
        untold = told | {"input_ids": self.model.untold(told["input_ids"])}
        return {
            "held_out_loss": self.model(**told, tokens=tokens)[0].item(),
            "held_out_loss_without_captions": self.model(**untold, tokens=tokens)[0].item(),
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the model without its tokenizer of pictures, in half precision, its processor, and the card."""
        janus = self.model.janus.half()
        own = {k: v for k, v in janus.state_dict().items() if not k.startswith(TOKENIZER_PREFIX)}
        janus.save_pretrained(directory, state_dict=own)
        self.processor.save_pretrained(directory)
        network = nn.ModuleList(m for name, m in janus.model.named_children() if name != "vqmodel")
        parts = {"tokenizer": self.init.tokenizer}
        write_training_card(
            directory, self.recipe, network, "text-to-image", "janus", metrics, steps, parts, "2410.13848"
        )
