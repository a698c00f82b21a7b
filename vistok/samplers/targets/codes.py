"""Image generators of transformers as targets of the draft-verify loop, with guidance inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.models.codes import CodeGenerator, PromptCondition
from vistok.ops import combine_guidance
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Scores, Verdict
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.support import check_attention
from vistok.samplers.tree import TokenTree


class CodeTarget:
    """A Janus, Emu3 or Chameleon behind the loop's interface: token trees in, guided logits out.

    With guidance, conditional and unconditional prompts, of whatever lengths, run as one batch of 2B rows.

    Args:
        model: the generator.
        condition: prompts of B pictures.
        params: guidance and its interval.
        nodes: most nodes of a tree, for which the cache has room.

    Attributes:
        length: tokens of a picture, those that its layout forces included.

    Raises:
        VistokError: a kernel of attention that takes no mask, prompts that are not padded on the left, or a negative
            prompt that does not fit.
    """

    def __init__(self, model: CodeGenerator, condition: PromptCondition, params: SamplingParams, nodes: int = 1):
        check_attention(model.config)
        self.model, self.params, self.guided = model, params, params.guided
        self.batch, self.length = len(condition), model.tokens.length
        prompts = [Prompt.of(condition.ids, condition.mask)]
        if self.guided:
            prompts.append(Prompt.of(*model.negative(condition)))
        width = max(prompt.flush.shape[1] for prompt in prompts)
        self._prompt = torch.cat([F.pad(prompt.flush, (0, width - prompt.flush.shape[1])) for prompt in prompts])
        self._count = torch.cat([prompt.count for prompt in prompts])
        end = width + self.length
        self.lm = CachedLM(
            model.network, end + nodes, True, end=end, backbone=model.backbone, embed=model.words, head=model.head
        )

    def prefill(self) -> Scores:
        """Guided logits of the first token [B, 1, V], and the features of the prompts' last tokens, [B or 2B, 1, D]."""
        logits = self.lm.read(self._prompt, self._count)
        last = (self._count - 1)[:, None, None].expand(-1, 1, self.lm.hidden.shape[-1])
        hidden = self.lm.hidden.gather(1, last)
        self.lm.embed = self.model.embed
        return Scores(self._guided(logits, torch.zeros_like(self._count[: self.batch, None])), hidden)

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        """Guided logits behind each node, and the nodes' features."""
        tokens, depth, seen = tree.tokens, tree.shape.depth, tree.shape.ancestors
        if self.guided:
            tokens = tokens.repeat(2, 1)
            depth = depth if len(depth) == 1 else depth.repeat(2, 1)
            seen = seen if len(seen) == 1 else seen.repeat(2, 1, 1)
        logits = self.lm.forward(tokens, depth, seen)
        return Scores(self._guided(logits, decided[:, None] + tree.shape.depth.clamp(min=0)), self.lm.hidden)

    def _guided(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits of the tokens at ``places`` [B, N], guided where the interval says so; of what fits there alone."""
        if self.guided:
            scale = self.params.guidance_at(places)
            scale = scale[..., None] if isinstance(scale, Tensor) else scale
            logits = combine_guidance(logits[: self.batch], logits[self.batch :], scale)
        return self.model.allowed(logits, places)

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        """Keep the accepted path of every sequence, in both halves."""
        verdict.keep_rows(self.lm.cache, rows, copies=2 if self.guided else 1)
