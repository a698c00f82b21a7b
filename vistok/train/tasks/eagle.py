"""Train an EAGLE drafter on the features of a frozen LlamaGen (arXiv 2401.15077, with LANTERN's settings, 2410.03355).

The drafter learns to predict the target's next feature (smooth L1) and the law that the target's head makes of it
(cross-entropy). Against the published recipe: every sample is seen under its caption and under the null condition, and
the cross-entropy is also taken of the guided law, because that is the law that drafts are checked against. The target's
features are extracted once, so a step costs the drafter alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.heads.eagle import EagleNetwork
from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.ops import combine_guidance
from vistok.samplers import Autoregressive, Noise, SamplingParams
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.options import check_shape, read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw, PictureData, Source, open_source
from vistok.train.tasks.pictures import PictureTask, check_size
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict

CHUNK = 32  # pictures whose features are extracted at a time


@dataclass(frozen=True, kw_only=True)
class EagleData(PictureData):
    """Entries of ``data`` of the ``eagle`` task, beside those of PictureData.

    Attributes:
        size: side of the pictures in pixels.
        guidance: scale at which drafts will be made.
        token_weight: weight of the cross-entropy against the regression.
        noise: uniform noise on the features that are read, over the length of the sequence.
        drawn: the target draws the pictures itself, from the captions, as it does where drafts are made.
        temperature: of such draws.
    """

    size: int
    guidance: float
    token_weight: float
    noise: float
    drawn: bool = False
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EagleInit:
    """Entries of ``init``.

    Attributes:
        gpt: the target with its text encoder.
        vq: the target's tokenizer.
        drafter: whose training goes on; a new one if None.
    """

    gpt: str
    vq: str
    drafter: str | None = None


@torch.no_grad()
def target_features(gpt: LlamaGen, tokens: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the target's final features of all tokens but the last, with and without the condition.

    Shape:
        tokens [B, n], condition [B, T, caption_dim], mask [B, T] -> [B, 2, T + n - 1, dim], the conditional ones first.
    """
    both = torch.cat([condition, gpt.null_condition(len(tokens)).to(condition)])
    state = gpt.new_state(len(both))
    prefix = gpt.prefill(both, state, None if mask is None else mask.repeat(2, 1))
    fed = tokens[:, :-1].repeat(2, 1)
    image = gpt.decode(fed, torch.arange(fed.shape[1], device=fed.device), state)
    return torch.stack(torch.cat([prefix, image], 1).chunk(2), 1)


class EagleObjective(nn.Module):
    """Feature regression and the cross-entropy of conditional, unconditional and guided laws.

    Args:
        drafter: the network that is trained; its embedding stays as it is.
        head: the frozen output layer of the target.
        guidance: scale at which drafts will be made.
        token_weight: weight of the cross-entropy against the regression.
        noise: uniform noise on the features that are read, over the length of the sequence (EAGLE's augmentation).
    """

    def __init__(self, drafter: EagleNetwork, head: nn.Module, guidance: float, token_weight: float, noise: float):
        super().__init__()
        self.drafter, self.head = drafter, head.requires_grad_(False)
        self.guidance, self.token_weight, self.noise = guidance, token_weight, noise

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and metrics of tokens [B, n] and their features as ``target_features`` gives them."""
        prefix = features.shape[2] - tokens.shape[1] + 1
        features = features.float().transpose(0, 1).flatten(0, 1)  # conditional rows first, as in decoding
        read = features[:, :-1]
        if self.training:
            read = read + (torch.rand_like(read) - 0.5) * (self.noise / read.shape[1])
        followed = F.pad(tokens[:, : read.shape[1] - prefix + 1], (prefix - 1, 0)).repeat(2, 1)
        predicted = self.drafter(read, followed)[:, prefix - 1 :]
        wanted = features[:, prefix:]
        regression = F.smooth_l1_loss(predicted.float(), wanted)
        drafted, exact = self.head(predicted).float(), self.head(wanted).float()
        guided, law = self._guide(drafted), self._guide(exact)
        entropy = (self._entropy(drafted, exact) + self._entropy(guided, law)) / 2
        loss = regression + self.token_weight * entropy
        metrics = {
            "regression": regression,
            "entropy": entropy,
            "agreed": (guided.argmax(-1) == law.argmax(-1)).float().mean(),
            "acceptance": torch.minimum(guided.softmax(-1), law.softmax(-1)).sum(-1).mean(),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _guide(self, logits: Tensor) -> Tensor:
        return combine_guidance(*logits.chunk(2), self.guidance)

    @staticmethod
    def _entropy(drafted: Tensor, exact: Tensor) -> Tensor:
        return -(exact.softmax(-1) * drafted.log_softmax(-1)).sum(-1).mean()


class EagleTask(PictureTask):
    """The ``eagle`` task, on pictures with captions: see EagleData and EagleInit; ``model`` shapes the drafter."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(EagleData, recipe.data, "data")
        self.init = read_options(EagleInit, recipe.init, "init")
        self.source = open_source(self.data, self.data.size, finite=True)
        torch.manual_seed(recipe.seed)
        self.vq = VQTokenizer.from_pretrained(self.init.vq).requires_grad_(False)
        check_size(self.vq.capabilities, self.data.size)
        self.gpt = LlamaGen.from_pretrained(self.init.gpt).requires_grad_(False).eval()
        self.text = TextEncoder.from_pretrained(resolve(self.init.gpt) / "text_encoder", torch.float32).eval()
        self.check_captions(self.text)
        target = self.gpt.config
        codes = {
            "vocab_size": self.vq.config.codebook_size,
            "block_size": (self.data.size // self.vq.config.downsample) ** 2,
        }
        check_shape(target, codes, self.init.gpt)
        shape = {
            "vocab_size": target.vocab_size,
            "hidden_size": target.dim,
            "num_attention_heads": target.n_head,
            "grid": target.grid,
            "cls_token_num": target.cls_token_num,
        }
        drafter = start_network(EagleNetwork, None, recipe.model, shape)
        drafter.embed_tokens.weight.data.copy_(self.gpt.output.weight)  # where LANTERN's began, and frozen there too
        if self.init.drafter is not None:
            load_strict(drafter, EagleNetwork.from_pretrained(self.init.drafter).state_dict(), "EagleNetwork")
        drafter.embed_tokens.requires_grad_(False)
        self.model = EagleObjective(
            drafter, self.gpt.output, self.data.guidance, self.data.token_weight, self.data.noise
        )
        count, slots = len(self.source), target.cls_token_num + target.block_size - 1
        self.tokens = torch.empty(count, target.block_size, dtype=torch.int64)
        self.features = torch.empty(count, 2, slots, target.dim, dtype=torch.float16)
        self.extracted = 0  # pictures whose features are known

    @torch.no_grad()
    def _extract(self, source: Source, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens and features of pictures."""
        device = next(self.model.parameters()).device
        for network in (self.vq, self.gpt, self.text):
            network.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            condition, mask = self.text(source.captions(Draw(index, torch.zeros_like(index))))
            if self.data.drawn:
                law = SamplingParams(self.data.guidance, temperature=self.data.temperature)
                noise = Noise(self.recipe.seed, index.to(device))
                tokens, _ = Autoregressive().sample(self.gpt, Condition(condition, mask), law, noise)
                tokens = tokens.clone()  # no longer of inference mode
            else:
                tokens = self.vq.encode(source.pictures(index).to(device)).flatten(1)
            return tokens, target_features(self.gpt, tokens, condition, mask)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures in a new order in each pass; the first pass is in order and extracts them."""
        epoch, start = divmod(step * self.recipe.batch_size, len(self.tokens))
        order = torch.arange(len(self.tokens))
        if epoch:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(epoch))
        index = order[(start + torch.arange(rows.start, rows.stop)) % len(order)]
        while self.extracted <= int(index.max()):
            chunk = torch.arange(self.extracted, min(self.extracted + CHUNK, len(order)))
            tokens, features = self._extract(self.source, chunk)
            self.tokens[chunk], self.features[chunk] = tokens.cpu(), features.to("cpu", self.features.dtype)
            self.extracted += len(chunk)
        return {"tokens": self.tokens[index], "features": self.features[index]}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns how well held-out pictures are drafted; ``acceptance`` is that of one sampled draft."""
        tokens, features = self._extract(self.source.held_out(), self.held_out_index())
        loss, metrics = self.model(features, tokens)
        return {"held_out_loss": float(loss)} | {f"held_out_{k}": float(v) for k, v in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the drafter in the published key layout."""
        drafter = self.model.drafter
        drafter.save_pretrained(directory, torch.float16)
        self.write_card(directory, drafter, "draft", "eagle", metrics, steps, {"target": self.init.gpt}, "2401.15077")
