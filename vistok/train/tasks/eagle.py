"""Train an EAGLE drafter on the features of a frozen LlamaGen (arXiv 2401.15077, with LANTERN's settings, 2410.03355).

The drafter learns to predict the target's next feature (smooth L1) and the law that the target's head makes of it
(cross-entropy). Against the published recipe: every sample is seen under its caption and under the null condition, and
the cross-entropy is also taken of the guided law, because that is the law that drafts are checked against.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import captions, sample_scenes
from vistok.models.eagle import Eagle, EagleConfig
from vistok.models.llamagen import LlamaGen
from vistok.ops import combine_guidance
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.llamagen import LlamaGenTask
from vistok.train.tasks.vq import HELD_OUT_SEED
from vistok.zoo import resolve


@torch.no_grad()
def target_features(gpt: LlamaGen, tokens: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
    """The target's final features of the prefix and of all image tokens but the last, [B, T + n - 1, dim]."""
    state = gpt.new_state(len(tokens))
    prefix = gpt.prefill(condition, state, mask)
    fed = tokens[:, :-1]
    return torch.cat([prefix, gpt.decode(fed, torch.arange(fed.shape[1], device=fed.device), state)], 1)


class EagleObjective(nn.Module):
    """Feature regression and the cross-entropy of conditional, unconditional and guided laws.

    Args:
        drafter: the network that is trained; its embedding stays as it is.
        gpt: the frozen target.
        guidance: scale at which drafts will be made.
        token_weight: weight of the cross-entropy against the regression.
        noise: uniform noise on the features that are read, over the length of the sequence (EAGLE's augmentation).
    """

    def __init__(self, drafter: Eagle, gpt: LlamaGen, guidance: float, token_weight: float, noise: float):
        super().__init__()
        self.drafter, self.gpt = drafter, gpt.requires_grad_(False)
        self.guidance, self.token_weight, self.noise = guidance, token_weight, noise

    def train(self, mode: bool = True) -> EagleObjective:
        """The target stays as it decodes."""
        super().train(mode)
        self.gpt.eval()
        return self

    def forward(self, condition: Tensor, mask: Tensor, tokens: Tensor):
        batch, prefix = condition.shape[:2]
        both = torch.cat([condition, self.gpt.null_condition(batch).to(condition)])
        tokens = tokens.repeat(2, 1)
        with torch.autocast(tokens.device.type, enabled=False):
            features = target_features(self.gpt, tokens, both, mask.repeat(2, 1))
        read = features[:, :-1]
        if self.training:
            read = read + (torch.rand_like(read) - 0.5) * (self.noise / read.shape[1])
        followed = F.pad(tokens[:, : read.shape[1] - prefix + 1], (prefix - 1, 0))
        predicted = self.drafter(read, followed)[:, prefix - 1 :]
        wanted = features[:, prefix:]
        regression = F.smooth_l1_loss(predicted.float(), wanted)
        drafted, exact = self.gpt.head(predicted), self.gpt.head(wanted)
        entropy = (self._entropy(drafted, exact) + self._entropy(self._guide(drafted), self._guide(exact))) / 2
        agreed = (self._guide(drafted).argmax(-1) == self._guide(exact).argmax(-1)).float().mean()
        loss = regression + self.token_weight * entropy
        overlap = torch.minimum(self._guide(drafted).softmax(-1), self._guide(exact).softmax(-1)).sum(-1).mean()
        metrics = {"regression": regression, "entropy": entropy, "agreed": agreed, "acceptance": overlap}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _guide(self, logits: Tensor) -> Tensor:
        return combine_guidance(*logits.chunk(2), self.guidance)

    @staticmethod
    def _entropy(drafted: Tensor, exact: Tensor) -> Tensor:
        return -(exact.float().softmax(-1) * drafted.float().log_softmax(-1)).sum(-1).mean()


class EagleTask(LlamaGenTask):
    """The ``eagle`` task: scenes and captions are those of the ``llamagen`` task.

    ``init.gpt`` names the target and ``init.vq`` its tokenizer; ``model`` is the drafter's configuration, and ``data``
    holds ``guidance``, ``token_weight`` and ``noise``.
    """

    def __init__(self, recipe: Recipe):
        encoder = resolve(recipe.init["gpt"]) / "text_encoder"
        super().__init__(replace(recipe, init={**recipe.init, "text_encoder": str(encoder)}))
        self.recipe = recipe
        self.text_encoder = self.model.text_encoder
        gpt = self.model.gpt
        target = gpt.config
        shape = {
            "vocab_size": target.vocab_size,
            "hidden_size": target.dim,
            "num_attention_heads": target.n_head,
            "grid": target.grid,
            "cls_token_num": target.cls_token_num,
        }
        drafter = Eagle(EagleConfig(**(shape | recipe.model)))
        drafter.embed_tokens.weight.data.copy_(gpt.output.weight.data)  # where LANTERN's began, and frozen there too
        drafter.embed_tokens.requires_grad_(False)
        data = recipe.data
        self.model = EagleObjective(drafter, gpt, data["guidance"], data["token_weight"], data["noise"])

    def _conditions(self, texts: list[str]) -> dict[str, Tensor]:
        self.text_encoder.to(next(self.model.parameters()).device)
        features, mask = self.text_encoder(texts)
        return {"condition": features.float(), "mask": mask}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """As for the target."""
        variant, start = divmod(step * self.recipe.batch_size, self.scenes)
        index = start + torch.arange(rows.start, rows.stop)
        texts = captions(sample_scenes(len(index), self.seed, int(index[0])), variant)
        return self._conditions(texts) | {"tokens": self._tokens(index)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """How well held-out scenes are drafted; ``acceptance`` is that of one sampled draft."""
        count = self.recipe.data.get("eval_scenes", 64)
        device = next(self.model.parameters()).device
        tokens = self._extract(HELD_OUT_SEED, 0, count).to(device)
        texts = captions(sample_scenes(count, HELD_OUT_SEED))
        loss, metrics = self.model(**self._conditions(texts), tokens=tokens)
        return {"held_out_loss": float(loss)} | {f"held_out_{k}": float(v) for k, v in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the drafter in the published key layout."""
        drafter = self.model.drafter
        drafter.save_pretrained(directory, torch.float16)
        parts = {"target": self.recipe.init["gpt"]}
        write_training_card(directory, self.recipe, drafter, "draft", "eagle", metrics, steps, parts, "2401.15077")
