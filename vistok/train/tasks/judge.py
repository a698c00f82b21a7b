"""Train the head of judge decoding (arXiv 2501.19309) on labels that are mined, as AutoJudge does, not written by hand.

The target continues passages of code greedily. Wherever the draft model would have said another token, that token is
put in and the target goes on from there; the swap was harmless if the completed code has the same syntax tree, up to
names and constants. The head learns by weighted logistic regression to tell that from the target's features there.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vistok.errors import VistokError
from vistok.models.heads.judge import JudgeConfig, JudgeHead
from vistok.train.export import write_training_card
from vistok.train.options import check_entries, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks import text
from vistok.train.trainer import Task
from vistok.zoo import resolve


def syntax(code: str) -> str:
    """Returns the kinds of the nodes of a text's syntax tree, in order; of as many of its first lines as are code."""
    lines = code.splitlines()
    for end in range(len(lines), 0, -1):
        try:
            tree = ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError):
            continue
        return " ".join(type(node).__name__ for node in ast.walk(tree))
    return ""


class JudgeObjective(nn.Module):
    """Cross-entropy of the labels, both of which weigh the same as a whole.

    Args:
        head: that is trained.
        share: of the examples that are harmless.
    """

    def __init__(self, head: JudgeHead, share: float):
        super().__init__()
        self.head = head
        self.weights = 0.5 / max(1 - share, 1e-6), 0.5 / max(share, 1e-6)

    def forward(self, features: Tensor, harmless: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and figures of features [B, H] and labels [B]."""
        logits = self.head.logits(features)
        weight = torch.where(harmless > 0.5, self.weights[1], self.weights[0])
        right = (logits > 0) == (harmless > 0.5)
        spared = (logits > 0).float()
        metrics = {"right": right.float().mean(), "spared": spared.mean()}
        metrics["wrongly_spared"] = (spared * (1 - harmless)).sum() / (1 - harmless).sum().clamp(min=1)
        return F.binary_cross_entropy_with_logits(logits, harmless, weight), metrics


@dataclass(frozen=True, kw_only=True)
class JudgeData:
    """Entries of ``data`` of the ``judge`` task.

    Attributes:
        prompt: tokens that a passage begins with.
        continuation: tokens by which the target continues it.
        passages: that are mined; every eighth is held out.
        swaps: tokens of a passage that are swapped at most.
        seed: of the passages.
    """

    prompt: int
    continuation: int
    passages: int
    swaps: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class JudgeInit:
    """Entries of ``init``.

    Attributes:
        target: the model whose features are read.
        draft: the model whose tokens are judged.
    """

    target: str
    draft: str


class JudgeTask(Task):
    """The ``judge`` task: see JudgeData and JudgeInit; ``model`` has no entries."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(JudgeData, recipe.data, "data")
        self.init = read_options(JudgeInit, recipe.init, "init")
        check_entries(recipe.model, (), "model")
        folder = resolve(self.init.target)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.target, self.draft = (
            LlamaForCausalLM.from_pretrained(resolve(name), dtype=torch.float32).eval().requires_grad_(False)
            for name in (self.init.target, self.init.draft)
        )
        torch.manual_seed(recipe.seed)
        mined = [self._mine(ids) for ids in self._passages()]
        mined = [pair for pair in mined if len(pair[0])]
        if len(mined) < 2:
            raise VistokError("the draft model says hardly anything that the target does not: mine more passages.")
        train, held_out = [pair for number, pair in enumerate(mined) if number % 8], mined[::8]
        self.features, self.harmless = (torch.cat(part) for part in zip(*train, strict=True))
        self.held_out = tuple(torch.cat(part) for part in zip(*held_out, strict=True))
        head = JudgeHead(JudgeConfig(self.target.config.hidden_size))
        self.model = JudgeObjective(head, float(self.harmless.mean()))

    def _passages(self) -> Tensor:
        """Beginnings of texts, and of functions and classes within them, int64 [P, prompt]."""
        starts = []
        for whole in text.documents("train"):
            parts = ["\n".join(whole.split("\n")[at:]) for at in _openings(whole)[:4]]
            starts += [part[: 8 * self.data.prompt] for part in parts]
        order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(self.data.seed)).tolist()
        found: list[list[int]] = []
        for number in order:
            ids = self.tokenizer(starts[number], verbose=False).input_ids
            if len(ids) >= self.data.prompt:
                found.append(ids[: self.data.prompt])
            if len(found) == self.data.passages:
                break
        if not found:
            raise VistokError(f"no passage has {self.data.prompt} tokens: ask for shorter prompts.")
        return torch.tensor(found)

    @torch.no_grad()
    def _mine(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Features at swapped tokens [S, H], and whether the swaps were harmless [S]."""
        length = len(prompt) + self.data.continuation
        whole = text.continued(self.target, prompt[None], self.data.continuation)[0]
        said = self.draft(whole[None]).logits[0, :-1].argmax(-1)
        # The last quarter is left alone: what follows a swap must have room to differ.
        places = torch.arange(len(prompt), length - self.data.continuation // 4)
        places = places[said[places - 1] != whole[places]][: self.data.swaps]
        if not len(places):
            return torch.empty(0, self.target.config.hidden_size), torch.empty(0)
        swapped = whole.repeat(len(places), 1).scatter(1, places[:, None], said[places - 1, None])
        features = self.target.model(swapped).last_hidden_state[torch.arange(len(places)), places]
        columns = torch.arange(length)
        pad = length - 1 - places[:, None]  # texts that end in the swap, flush on the right
        ids, mask = swapped.gather(1, (columns - pad).clamp(min=0)), columns >= pad
        found = text.continued(self.target, ids, int(pad.max()), mask.long())
        as_it_was = syntax(self.tokenizer.decode(whole))
        texts = [row[start : start + length] for row, start in zip(found, pad[:, 0].tolist(), strict=True)]
        harmless = [float(syntax(self.tokenizer.decode(text)) == as_it_was) for text in texts]
        return features, torch.tensor(harmless)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns examples, in a new order each time they have all been seen."""
        numbers = torch.arange(rows.start, rows.stop) + step * self.recipe.batch_size
        epochs, places = numbers // len(self.features), numbers % len(self.features)
        chosen = [_shuffled(len(self.features), int(e))[p] for e, p in zip(epochs, places, strict=True)]
        index = torch.stack(chosen)
        return {"features": self.features[index], "harmless": self.harmless[index]}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns figures on held-out passages."""
        device = self.model.head.score.weight.device
        loss, metrics = self.model(*(part.to(device) for part in self.held_out))
        share = {"held_out_harmless": float(self.held_out[1].mean())}
        return {"held_out_loss": float(loss)} | share | {f"held_out_{k}": float(v) for k, v in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the head, with a card."""
        head = self.model.head
        head.save_pretrained(directory)
        corpus = f"swapped tokens in continuations of the Python standard library, seed {self.data.seed}"
        parts = {"target": self.init.target, "draft": self.init.draft}
        write_training_card(directory, self.recipe, head, "judge", "judge", metrics, steps, parts, "2501.19309", corpus)


def _openings(whole: str) -> list[int]:
    """Lines at which a text, and functions and classes at its left margin, begin."""
    lines = whole.split("\n")
    return [0, *(at for at, line in enumerate(lines) if at and line.startswith(("def ", "class ")))]


def _shuffled(count: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
