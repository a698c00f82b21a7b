"""Train a small language model on the Python standard library, or a smaller one that drafts for it.

A language model learns the next token, with a byte-level BPE that is trained on the same corpus. A draft model shares
the tokenizer of its target (``init.teacher``) and learns the target's law at every position of the corpus, because the
chance that its drafts are accepted is the overlap of the two laws (distillation as in DistillSpec, arXiv 2310.08461,
here on corpus text instead of sampled text).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vistok.data.text import CORPUS, documents
from vistok.errors import VistokError
from vistok.train.export import write_training_card
from vistok.train.options import check_entries, read_options
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task
from vistok.zoo.transformers import load_causal_lm

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: list[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE of ``vocabulary`` tokens, with one special token that ends every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=length
    )


def encoded(tokenizer: PreTrainedTokenizerFast, split: str) -> Tensor:
    """Returns the texts of a split behind one another, int64 [n]."""
    return joined(tokenizer, documents(split))


def joined(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Returns the tokens of texts behind one another, int64 [n]."""
    found = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.cat([torch.tensor(each.ids, dtype=torch.int64) for each in found])


def load_lm(name: str) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """Returns the tokenizer and the language model, in float32, of a zoo name, folder or hub id."""
    lm, tokenizer = load_causal_lm(name)
    return tokenizer, lm.requires_grad_(True)


def save_lm(directory: Path, lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a model as transformers does, in half precision, with its tokenizer."""
    saved = LlamaForCausalLM(lm.config).to(torch.float16)
    saved.load_state_dict(lm.state_dict())
    saved.save_pretrained(directory)
    tokenizer.model_max_length = lm.config.max_position_embeddings
    tokenizer.save_pretrained(directory)


def lengthened(lm: LlamaForCausalLM, positions: int, rope_theta: float | None = None) -> LlamaForCausalLM:
    """Returns the model for texts of so many tokens, with another base of its rotation where one is given."""
    config = copy.deepcopy(lm.config)
    config.max_position_embeddings = max(positions, config.max_position_embeddings)
    if rope_theta is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope_theta}
    longer = LlamaForCausalLM(config)  # whose tables are made anew
    longer.load_state_dict(lm.state_dict())
    return longer


def draw_passages(tokens: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Returns passages of a corpus [n] that begin anywhere, [count, length]."""
    starts = torch.randint(len(tokens) - length, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


@dataclass(frozen=True, kw_only=True)
class TuningInit:
    """Entries of ``init`` of tasks that go on training a language model.

    Attributes:
        target: the language model that goes on learning.
    """

    target: str


@torch.no_grad()
def continued(lm: LlamaForCausalLM, ids: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """Returns texts with a model's own greedy continuation, int64 [B, T + size].

    Args:
        lm: the model.
        ids: what it reads, int64 [B, T].
        size: tokens that it goes on for, whatever they are.
        mask: which of ``ids`` are no padding, int64 [B, T]; all of them if None.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    limits = {"min_new_tokens": size, "max_new_tokens": size, "pad_token_id": 0}
    return lm.generate(ids, attention_mask=mask, do_sample=False, **limits)


def held_out_figures(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Returns the mean loss and metrics of an objective over batches of its arguments, by name."""
    found = [model(**batch) for batch in batches]
    loss = {"held_out_loss": float(torch.stack([loss for loss, _ in found]).mean())}
    means = {name: torch.stack([metrics[name] for _, metrics in found]).mean() for name in found[0][1]}
    return loss | {f"held_out_{name}": float(value) for name, value in means.items()}


class TextObjective(nn.Module):
    """Cross-entropy with the text, or with a teacher's law.

    Args:
        lm: the model that is trained.
        teacher: the frozen model whose law is learnt; the text itself if None.
    """

    def __init__(self, lm: LlamaForCausalLM, teacher: LlamaForCausalLM | None = None):
        super().__init__()
        self.lm = lm
        self.teacher = None if teacher is None else teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> TextObjective:
        """The teacher stays as it decodes."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, input_ids: Tensor):
        read, followed = input_ids[:, :-1], input_ids[:, 1:]
        logits = self.lm(input_ids=read, use_cache=False).logits.flatten(0, 1).float()
        if self.teacher is None:
            return F.cross_entropy(logits, followed.flatten()), {}
        with torch.no_grad():
            law = self.teacher(input_ids=read, use_cache=False).logits.flatten(0, 1).float().softmax(-1)
        acceptance = torch.minimum(logits.detach().softmax(-1), law).sum(-1).mean()
        return F.cross_entropy(logits, law), {"acceptance": acceptance}


class PassageTask(Task):
    """Base of tasks that learn from passages drawn anew for every step: a subclass says what a draw holds.

    Attributes:
        data: has the entries ``seed`` and ``eval_samples``.
        tokens: of the corpus, int64 [n].
    """

    data: Any
    tokenizer: PreTrainedTokenizerFast
    tokens: Tensor

    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Returns arguments of the objective, from ``count`` passages of a corpus [n]."""
        raise NotImplementedError

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns passages of the corpus."""
        first = step * self.recipe.batch_size + rows.start
        return self.samples(self.tokens, rows.stop - rows.start, self.data.seed * 1_000_003 + first)

    def evaluate(self) -> dict[str, float]:
        """Returns the loss and metrics of the objective on held-out modules."""
        return self.held_out(encoded(self.tokenizer, "held-out"))

    @torch.no_grad()
    def held_out(self, tokens: Tensor) -> dict[str, float]:
        """Returns the loss and metrics of the objective on passages of tokens [n]."""
        samples = self.samples(tokens, self.data.eval_samples, 1)
        parts = [value.to(self.model.lm.device).split(16) for value in samples.values()]
        batches = (dict(zip(samples, part, strict=True)) for part in zip(*parts, strict=True))
        return held_out_figures(self.model, batches)


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Entries of ``data`` of the ``text`` task.

    Attributes:
        length: tokens of a sample.
        seed: of the samples' order.
        vocabulary: of the tokenizer that is trained, where no teacher brings one.
        eval_samples: how many held-out samples are evaluated on.
    """

    length: int
    seed: int
    vocabulary: int | None = None
    eval_samples: int = 64


@dataclass(frozen=True, kw_only=True)
class TextInit:
    """Entries of ``init``.

    Attributes:
        teacher: the target of a draft model, whose tokenizer and law it takes.
    """

    teacher: str | None = None


class TextTask(Task):
    """The ``text`` task: see TextData and TextInit; ``model`` holds entries of the Llama configuration."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        data, self.init = read_options(TextData, recipe.data, "data"), read_options(TextInit, recipe.init, "init")
        check_entries(recipe.model, LlamaConfig().to_dict(), "model")
        self.length, self.seed, self.eval_samples = data.length, data.seed, data.eval_samples
        texts = documents("train")
        teacher = None
        if self.init.teacher is not None:
            self.tokenizer, teacher = load_lm(self.init.teacher)
        elif data.vocabulary is None:
            raise VistokError("say as 'data.vocabulary' how many tokens the tokenizer has, or name 'init.teacher'.")
        else:
            self.tokenizer = train_tokenizer(texts, data.vocabulary, self.length)
        self.tokens = self._encode(texts)
        torch.manual_seed(recipe.seed)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            max_position_embeddings=self.length,
            bos_token_id=None,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=None,
            tie_word_embeddings=True,
            **recipe.model,
        )
        self.model = TextObjective(LlamaForCausalLM(config), teacher)

    def _encode(self, texts: list[str]) -> Tensor:
        """All texts behind one another, each with its end."""
        encoded = self.tokenizer.backend_tokenizer.encode_batch([text + END_OF_TEXT for text in texts])
        return torch.cat([torch.tensor(text.ids, dtype=torch.int64) for text in encoded])

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a task lives as long as its process
    def _order(self, epoch: int) -> Tensor:
        """Where the samples of an epoch begin, in their order."""
        generator = torch.Generator().manual_seed(self.seed * 10_007 + epoch)
        shift = int(torch.randint(self.length, (1,), generator=generator))
        starts = torch.arange(shift, len(self.tokens) - self.length, self.length)
        return starts[torch.randperm(len(starts), generator=generator)]

    def _samples(self, starts: Tensor, tokens: Tensor) -> Tensor:
        return tokens[starts[:, None] + torch.arange(self.length + 1)]

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns windows of the corpus, each once an epoch."""
        size = len(self.tokens) // self.length - 1
        starts = []
        for index in range(step * self.recipe.batch_size + rows.start, step * self.recipe.batch_size + rows.stop):
            epoch, number = divmod(index, size)
            starts.append(self._order(epoch)[number])
        return {"input_ids": self._samples(torch.stack(starts), self.tokens)}

    def _held_out(self) -> Tensor:
        tokens = self._encode(documents("held-out"))
        starts = torch.linspace(0, len(tokens) - self.length - 1, self.eval_samples).long()
        return self._samples(starts, tokens)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the cross-entropy on held-out modules; of a draft model also how well it knows its target."""
        count = self.eval_samples
        batches = self._held_out().to(self.model.lm.device).split(16)
        text = TextObjective(self.model.lm).eval()
        figures = {"held_out_loss": sum(float(text(ids)[0]) * len(ids) for ids in batches) / count}
        if self.model.teacher is not None:
            found = [self.model(ids)[1]["acceptance"] for ids in batches]
            figures["held_out_acceptance"] = float(torch.stack(found).mean())
        return figures

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the model as transformers does, in half precision, with its tokenizer."""
        lm = self.model.lm
        save_lm(directory, lm, self.tokenizer)
        draft = self.model.teacher is not None
        parts = {"target": self.init.teacher} if draft else None
        task = "draft" if draft else "text-generation"
        corpus = f"{CORPUS}, seed {self.seed}"
        write_training_card(directory, self.recipe, lm, task, "llama", metrics, steps, parts, data=corpus)
