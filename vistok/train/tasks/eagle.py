"""Train an EAGLE drafter on the features of a frozen LlamaGen (arXiv 2401.15077, with LANTERN's settings, 2410.03355).

The drafter learns to predict the target's next feature (smooth L1) and the law that the target's head makes of it
(cross-entropy). Against the published recipe: every sample is seen under its caption and under the null condition, and
the cross-entropy is also taken of the guided law, because that is the law that drafts are checked against. The target's
features are extracted once, so a step costs the drafter alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import captions, render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.models.heads.eagle import Eagle, EagleConfig
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.ops import combine_guidance
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.zoo import resolve

CHUNK = 32  # scenes whose features are extracted at a time


@torch.no_grad()
def target_features(gpt: LlamaGen, tokens: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
    """The target's final features of the prefix and of all image tokens but the last, with and without the condition.

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

    def __init__(self, drafter: Eagle, head: nn.Module, guidance: float, token_weight: float, noise: float):
        super().__init__()
        self.drafter, self.head = drafter, head.requires_grad_(False)
        self.guidance, self.token_weight, self.noise = guidance, token_weight, noise

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of tokens [B, n] and their features as ``target_features`` gives them."""
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


class EagleTask:
    """The ``eagle`` task.

    ``init.gpt`` names the target with its text encoder, and ``init.vq`` its tokenizer; ``model`` is the drafter's
    configuration, and ``data`` holds the ``scenes`` of world ``seed`` that it learns from, their ``size`` in pixels,
    ``guidance``, ``token_weight`` and ``noise``.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.vq = VQTokenizer.from_pretrained(recipe.init["vq"]).requires_grad_(False)
        self.gpt = LlamaGen.from_pretrained(recipe.init["gpt"]).requires_grad_(False).eval()
        self.text = TextEncoder.from_pretrained(resolve(recipe.init["gpt"]) / "text_encoder", torch.float32).eval()
        target, data = self.gpt.config, recipe.data
        shape = {
            "vocab_size": target.vocab_size,
            "hidden_size": target.dim,
            "num_attention_heads": target.n_head,
            "grid": target.grid,
            "cls_token_num": target.cls_token_num,
        }
        drafter = Eagle(EagleConfig(**(shape | recipe.model)))
        drafter.embed_tokens.weight.data.copy_(self.gpt.output.weight)  # where LANTERN's began, and frozen there too
        drafter.embed_tokens.requires_grad_(False)
        self.model = EagleObjective(drafter, self.gpt.output, data["guidance"], data["token_weight"], data["noise"])
        slots = target.cls_token_num + target.block_size - 1
        self.tokens = torch.empty(data["scenes"], target.block_size, dtype=torch.int64)
        self.features = torch.empty(data["scenes"], 2, slots, target.dim, dtype=torch.float16)
        self.extracted = 0  # scenes whose features are known

    @torch.no_grad()
    def _extract(self, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Tokens and features of scenes."""
        device = next(self.model.parameters()).device
        for network in (self.vq, self.gpt, self.text):
            network.to(device)
        scenes = sample_scenes(count, seed, start)
        tokens = self.vq.encode(render(scenes, self.recipe.data["size"]).to(device)).flatten(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            condition, mask = self.text(captions(scenes))
            return tokens, target_features(self.gpt, tokens, condition, mask)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in a new order in each pass; the first pass is in order and extracts them."""
        epoch, start = divmod(step * self.recipe.batch_size, len(self.tokens))
        order = torch.arange(len(self.tokens))
        if epoch:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(epoch))
        index = order[(start + torch.arange(rows.start, rows.stop)) % len(order)]
        while self.extracted <= int(index.max()):
            chunk = slice(self.extracted, min(self.extracted + CHUNK, len(order)))
            found = self._extract(self.recipe.data["seed"], chunk.start, chunk.stop - chunk.start)
            self.tokens[chunk], self.features[chunk] = (part.cpu() for part in found)
            self.extracted = chunk.stop
        return {"tokens": self.tokens[index], "features": self.features[index]}

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """How well held-out scenes are drafted; ``acceptance`` is that of one sampled draft."""
        tokens, features = self._extract(HELD_OUT, 0, self.recipe.data["eval_scenes"])
        loss, metrics = self.model(features, tokens)
        return {"held_out_loss": float(loss)} | {f"held_out_{k}": float(v) for k, v in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the drafter in the published key layout."""
        drafter = self.model.drafter
        drafter.save_pretrained(directory, torch.float16)
        parts = {"target": self.recipe.init["gpt"]}
        write_training_card(directory, self.recipe, drafter, "draft", "eagle", metrics, steps, parts, "2401.15077")
