"""Train an EAGLE-3 drafter on the inner states of a frozen text model (arXiv 2503.01840), with its training-time test.

A head is asked for the next token, then, reading its own output as it will when it drafts, for the one behind it, and
so on: each unrolled step sees the first step's slots up to its own, and what the steps since made at its own slot. The
loss of a step is the cross-entropy with the target's law over the tokens that the head may draft.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok.data.text import CORPUS, documents
from vistok.errors import VistokError
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.progress import progress
from vistok.train.export import write_training_card
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.tasks.text import TextTask, continued, draw_passages, load_lm

DECAY = 0.8  # weight of a step against the one before


@dataclass(frozen=True, kw_only=True)
class Eagle3Data:
    """Entries of ``data`` of the ``eagle3`` task.

    Attributes:
        length: tokens of a sample.
        seed: of the samples' order.
        steps: unrolled steps.
        eval_samples: how many held-out samples are evaluated on.
        continuation: tokens at a sample's end that are the target's own greedy continuation, as it is drafted for,
            instead of the corpus's.
        passages: how many samples with such a continuation there are. All are continued before the first step, in
            large batches, and every epoch goes through them in another order.
    """

    length: int
    seed: int
    steps: int = 4
    eval_samples: int = 64
    continuation: int = 0
    passages: int = 0


@dataclass(frozen=True, kw_only=True)
class Eagle3Init:
    """Entries of ``init``.

    Attributes:
        target: the text model whose tokens are drafted.
    """

    target: str


class Eagle3Objective(nn.Module):
    """Unrolled cross-entropy of a drafter with its target's law.

    Args:
        drafter: the network that is trained.
        target: the frozen text model.
        steps: unrolled.
    """

    def __init__(self, drafter: Eagle3Network, target: LlamaForCausalLM, steps: int):
        super().__init__()
        self.drafter, self.target, self.steps = drafter, target.requires_grad_(False), steps

    def train(self, mode: bool = True) -> Eagle3Objective:
        """The target stays as it decodes."""
        super().train(mode)
        self.target.eval()
        return self

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and the acceptance of each step, of tokens [B, L]."""
        drafter, config = self.drafter, self.drafter.config
        with torch.no_grad():
            output = self.target(input_ids=input_ids, use_cache=False, output_hidden_states=True)
            states = torch.cat([output.hidden_states[layer] for layer in config.aux_layers], -1)
            law = output.logits.float().softmax(-1)
            if config.draft_vocab_size:
                law = law[..., drafter.t2d]
        width = input_ids.shape[1] - self.steps
        fed, tokens = [drafter.read(states[:, :width])], []
        losses, metrics = [], {}
        for step in range(self.steps):
            tokens.append(input_ids[:, 1 + step : 1 + step + width])
            slots = torch.cat([torch.arange(width) + s for s in range(step + 1)]).to(input_ids.device)
            seen = unrolled_mask(width, step + 1).to(input_ids.device)
            hidden = drafter(torch.cat(fed, 1), torch.cat(tokens, 1), slots=slots[None], visible=seen)[:, -width:]
            fed.append(hidden)
            logits = drafter.logits(hidden).float()
            wanted = law[:, 1 + step : 1 + step + width]
            losses.append(DECAY**step * -(wanted * logits.log_softmax(-1)).sum(-1).mean())
            overlap = torch.minimum(logits.detach().softmax(-1), wanted).sum(-1).mean()
            metrics[f"acceptance_{step + 1}"] = overlap
        return sum(losses) / sum(DECAY**step for step in range(self.steps)), metrics


def unrolled_mask(width: int, steps: int) -> Tensor:
    """Returns which slots each sees after steps over ``width`` slots, bool [1, 1, steps * width, steps * width].

    A slot sees the first step's slots up to its own, and at its own place the steps up to its own.
    """
    place, step = torch.arange(width).repeat(steps), torch.arange(steps).repeat_interleave(width)
    first = (step == 0) & (place <= place[:, None])
    own = (place == place[:, None]) & (step <= step[:, None])
    return (first | own)[None, None]


class Eagle3Task(TextTask):
    """The ``eagle3`` task, on the text that the target learnt: see Eagle3Data and Eagle3Init; ``model`` shapes the
    drafter, which has its own embeddings where its width is not the target's.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        data, self.init = read_options(Eagle3Data, recipe.data, "data"), read_options(Eagle3Init, recipe.init, "init")
        self.length, self.seed, self.eval_samples = data.length, data.seed, data.eval_samples
        self.continuation = data.continuation
        if not 0 <= self.continuation < self.length:
            raise VistokError(f"'data.continuation' is less than the {self.length} tokens of a sample.")
        self.passages = data.passages
        if self.continuation and self.passages < recipe.batch_size:
            raise VistokError(
                f"'data.continuation' needs 'data.passages', at least the {recipe.batch_size} samples of a step."
            )
        self.tokenizer, target = load_lm(self.init.target)
        self.target = target.eval().requires_grad_(False)
        self.tokens = self._encode(documents("train"))
        torch.manual_seed(recipe.seed)
        own = target.config
        shape = {
            "vocab_size": own.vocab_size,
            "hidden_size": own.hidden_size,
            "target_hidden_size": own.hidden_size,
            "max_position_embeddings": self.length + data.steps,
        }
        given = {name: shape.pop(name) for name in ("hidden_size",) if name in recipe.model}
        drafter = start_network(Eagle3Network, None, recipe.model, shape)
        config = drafter.config
        for weight in drafter.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)
        table = target.get_input_embeddings().weight
        drafter.borrows = not given or config.hidden_size == own.hidden_size
        if drafter.borrows:
            drafter.share_embedding(table.detach().clone())
            drafter.embed_tokens.requires_grad_(False)
        if config.draft_vocab_size:
            drafted = self.continued[:, -self.continuation :].flatten() if self.continuation else self.tokens
            counts = drafted.bincount(minlength=own.vocab_size)
            ids = counts.topk(config.draft_vocab_size).indices.sort().values
            drafter.d2t.copy_(ids - torch.arange(len(ids)))
            drafter.t2d[ids] = True
        self.model = Eagle3Objective(drafter, target, data.steps)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns windows of the corpus, with the target's continuations where they are asked for."""
        if not self.continuation:
            return super().batch(step, rows)
        size = self.recipe.batch_size
        epoch, number = divmod(step, self.passages // size)
        order = torch.randperm(self.passages, generator=torch.Generator().manual_seed(self.seed + epoch))
        return {"input_ids": self.continued[order[number * size :][:size][rows]]}

    @functools.cached_property
    def continued(self) -> Tensor:
        """The samples that epochs draw from, each ending in the target's continuation, int64 [passages, length + 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        parts = draw_passages(self.tokens, self.length + 1, self.passages, generator).split(256)
        with progress("continuing passages", len(parts)) as advance:
            found = []
            for part in parts:
                found.append(self._continued(part).cpu())
                advance()
        return torch.cat(found)

    def _continued(self, ids: Tensor) -> Tensor:
        """Samples whose end is the target's continuation of their beginning, where that is asked for."""
        if not self.continuation:
            return ids
        return continued(self.target, ids[:, : -self.continuation].to(self.target.device), self.continuation)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the loss and each step's overlap with the target's law, on modules that were held out."""
        tokens, count = self._encode(documents("held-out")), self.eval_samples
        starts = torch.linspace(0, len(tokens) - self.length - 1, count).long()
        device = next(self.model.parameters()).device
        samples = self._continued(self._samples(starts, tokens)).to(device)
        found = [(len(ids), *self.model(ids)) for ids in samples.split(16)]
        figures = {"held_out_loss": sum(size * float(loss) for size, loss, _ in found) / count}
        for name in found[0][2]:
            figures[f"held_out_{name}"] = sum(size * float(metrics[name]) for size, _, metrics in found) / count
        return figures

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the drafter in the published key layout."""
        drafter = self.model.drafter
        drafter.save_pretrained(directory, torch.float16)
        corpus = f"{CORPUS}, seed {self.seed}"
        target = {"target": self.init.target}
        write_training_card(
            directory, self.recipe, drafter, "draft", "eagle3", metrics, steps, target, "2503.01840", data=corpus
        )
