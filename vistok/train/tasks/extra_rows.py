"""Train what predicts the tokens to come beside a frozen language model: the rows of prompt tokens (PPD, arXiv
2405.18628) and of hidden transfer (arXiv 2404.12022), and Medusa heads (arXiv 2401.10774), their baseline.

All learn by self-distillation: the model continues passages of the corpus greedily, and the law that it has at a token
of its continuation is what a row or head must say that stood some tokens before, blind to those between. PPD draws one
cut a passage; here a passage serves ``cuts`` of them, as the greedy continuation of a cut is the rest of the passage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vistok.errors import VistokError
from vistok.models.heads.extra_rows import RowNetwork
from vistok.models.heads.hidden_transfer import HiddenTransfer
from vistok.models.heads.medusa import Medusa
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers.drafters.extra_rows import hang
from vistok.samplers.targets.cached_lm import extra_rows
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.train.export import write_training_card
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.tasks import text


def rows_forward(lm: nn.Module, network: RowNetwork, tokens: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Runs texts once, with all rows of a network behind their tokens at ``cuts``.

    Args:
        lm: a causal LM of transformers.
        network: gives the rows.
        tokens: int64 [B, T].
        cuts: places, int64 [B, C].

    Returns:
        Logits behind the tokens [B, T, V], and of the predictions at the cuts [B, C, m, V].
    """
    length, ahead = tokens.shape[1], network.ahead
    attach = cuts.repeat_interleave(ahead, 1)
    which = torch.arange(ahead, device=tokens.device).repeat(cuts.shape[1])[None].expand(len(cuts), -1)
    extra = hang(network, attach, which)
    depth, seen = TokenTree(tokens, TreeShape.chain_of(length, tokens.device), extra=extra).rows()
    with extra_rows(lm, extra, length):
        padded = F.pad(tokens, (0, extra.count))
        logits = lm(padded, attention_mask=seen[:, None], position_ids=depth, use_cache=False).logits
    found = logits[:, length:].unflatten(1, (cuts.shape[1], ahead, network.group)).mean(3)
    return logits[:, :length], found


def heads_forward(lm: nn.Module, network: Medusa, tokens: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what ``rows_forward`` does, of heads that read the model's final features at the cuts."""
    with torch.no_grad():
        features = lm.model(tokens, use_cache=False).last_hidden_state
        logits = lm.lm_head(features)
    at = cuts[..., None].expand(-1, -1, features.shape[-1])
    return logits, network(features.gather(1, at))


class AheadObjective(nn.Module):
    """Divergence of the predicted laws from those that the model has once it has read what was not seen.

    Args:
        lm: the model, frozen.
        network: the rows or heads that are trained.
        decay: weight of a prediction against that of the one before.
    """

    def __init__(self, lm: LlamaForCausalLM, network: RowNetwork | Medusa, decay: float):
        super().__init__()
        self.lm, self.network, self.decay = lm.requires_grad_(False), network, decay
        self._forward = heads_forward if isinstance(network, Medusa) else rows_forward

    def train(self, mode: bool = True) -> AheadObjective:
        """The model stays as it decodes."""
        super().train(mode)
        self.lm.eval()
        return self

    def forward(self, input_ids: Tensor, cuts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and how often each prediction's most likely token is the model's.

        Args:
            input_ids: texts that end in the model's own continuation, int64 [B, T].
            cuts: places within it, m tokens before its end or earlier, int64 [B, C].
        """
        logits, predicted = self._forward(self.lm, self.network, input_ids, cuts)
        places = cuts[..., None] + 1 + torch.arange(self.network.ahead, device=cuts.device)
        batch = torch.arange(len(cuts), device=cuts.device)[:, None, None]
        law = logits[batch, places].detach().float().log_softmax(-1)
        divergence = F.kl_div(predicted.float().log_softmax(-1), law, reduction="none", log_target=True).sum(-1)
        weight = self.decay ** torch.arange(1, self.network.ahead + 1, device=cuts.device)
        right = (predicted.argmax(-1) == law.argmax(-1)).float().mean((0, 1))
        metrics = {f"accuracy_{number}": value.detach() for number, value in enumerate(right, 1)}
        return (divergence.mean((0, 1)) * weight).mean(), metrics


@dataclass(frozen=True, kw_only=True)
class ContinuationData:
    """Entries of ``data`` of these tasks.

    Attributes:
        prompt: tokens of the corpus that a passage begins with.
        continuation: tokens that the model continues it by.
        cuts: places of a passage that are trained.
        seed: of passages and cuts.
        decay: weight of a prediction against that of the one before.
        eval_samples: held-out passages that are evaluated on.
    """

    prompt: int
    continuation: int
    cuts: int
    seed: int
    decay: float = 0.8
    eval_samples: int = 64


@dataclass(frozen=True, kw_only=True)
class ContinuationInit:
    """Entries of ``init``.

    Attributes:
        teacher: the language model that the rows are for.
    """

    teacher: str


class AheadTask(text.PassageTask):
    """Base of the tasks: a subclass makes the network."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(ContinuationData, recipe.data, "data")
        self.init = read_options(ContinuationInit, recipe.init, "init")
        self.tokenizer, lm = text.load_lm(self.init.teacher)
        torch.manual_seed(recipe.seed)
        network = self.network(lm)
        if self.data.continuation <= network.ahead:
            raise VistokError(f"a continuation must be longer than the {network.ahead} tokens that rows predict.")
        self.model = AheadObjective(lm, network, self.data.decay)
        self.tokens = text.encoded(self.tokenizer, "train")

    def network(self, lm: LlamaForCausalLM) -> RowNetwork | Medusa:
        """Returns the rows or heads, untrained."""
        raise NotImplementedError

    @torch.no_grad()
    def samples(self, tokens: Tensor, count: int, seed: int) -> dict[str, Tensor]:
        """Returns passages of the corpus with the model's continuations, and cuts within these."""
        data, generator = self.data, torch.Generator().manual_seed(seed)
        lm = self.model.lm
        read = text.draw_passages(tokens, data.prompt, count, generator).to(lm.device)
        whole = text.continued(lm, read, data.continuation)
        # A row at the prompt's last token stands in front of the continuation's first.
        room = data.continuation - self.model.network.ahead
        cuts = torch.rand(count, room, generator=generator).argsort(1)[:, : data.cuts]
        return {"input_ids": whole, "cuts": (data.prompt - 1 + cuts).to(lm.device)}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the rows or heads, with a card."""
        network = self.model.network
        network.save_pretrained(directory, torch.float16)
        corpus = f"the model's continuations of the Python standard library, seed {self.data.seed}"
        parts = {"target": self.init.teacher}
        family = self.recipe.task
        write_training_card(
            directory, self.recipe, network, "draft", family, metrics, steps, parts, network.arxiv, corpus
        )


@dataclass(frozen=True, kw_only=True)
class PromptTokensModel:
    """Entries of ``model`` of the ``prompt-tokens`` task.

    Attributes:
        ahead: prompt tokens.
        group: rows of each.
        attention: see PromptTokens.
    """

    ahead: int = 3
    group: int = 1
    attention: str = "ensemble"


class PromptTokensTask(AheadTask):
    """The ``prompt-tokens`` task: see ContinuationData, ContinuationInit and PromptTokensModel."""

    def network(self, lm: LlamaForCausalLM) -> PromptTokens:
        """Returns prompt tokens that begin as the words "Next 2 word", "Next 3 word", ..."""
        shape = read_options(PromptTokensModel, self.recipe.model, "model")
        words = [self.tokenizer(f"Next {number + 2} word").input_ids for number in range(shape.ahead)]
        return PromptTokens.initial(lm, words, shape.group, shape.attention)


class HiddenTransferTask(AheadTask):
    """The ``hidden-transfer`` task: see ContinuationData and ContinuationInit; ``model`` holds layer and ahead."""

    def network(self, lm: LlamaForCausalLM) -> HiddenTransfer:
        """Returns maps that begin as the identity."""
        given = {"hidden_size": lm.config.hidden_size}
        network = start_network(HiddenTransfer, None, self.recipe.model, given)
        network.check(lm)
        return network


@dataclass(frozen=True, kw_only=True)
class MedusaModel:
    """Entries of ``model`` of the ``medusa`` task.

    Attributes:
        ahead: heads.
        layers: residual layers of each.
    """

    ahead: int = 3
    layers: int = 1


class MedusaTask(AheadTask):
    """The ``medusa`` task: see ContinuationData, ContinuationInit and MedusaModel."""

    def network(self, lm: LlamaForCausalLM) -> Medusa:
        """Returns heads that begin as the model's own output layer."""
        shape = read_options(MedusaModel, self.recipe.model, "model")
        return Medusa.initial(lm, shape.ahead, shape.layers)
