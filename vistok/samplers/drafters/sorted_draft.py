"""S2D: one draft model whose first layers are smaller draft models (sorted speculative decoding, arXiv 2407.01955).

A chain is drafted by the smallest exit. Where its most likely token is not likely enough the next larger exit is asked,
and where the largest is unsure as well the draft ends. All exits share the final norm and the output layer, so a model
that was trained that way loads as it is, and drafts for every target with its tokenizer. Each draft is drawn from the
law of the exit that was asked last, and whether it is drawn depends on laws alone: exact verification is lossless.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops import draw
from vistok.ops.tree import PADDING
from vistok.samplers.drafters.draft_model import same_vocabulary
from vistok.samplers.drafters.text import TextDrafter, TextSoFar
from vistok.samplers.noise import DRAFT
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import draft_law, kind_of
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.cached_lm import CachedLM, decoder_layers, text_model
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.support import check_model
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


def first_layers(model: nn.Module, count: int) -> nn.Module:
    """A causal LM of the first layers of another, which shares its weights.

    Raises:
        VistokError: it has not so many, or does not hold its decoder in one place.
    """
    layers, decoder = decoder_layers(model), text_model(model)
    if not 1 <= count <= len(layers):
        raise VistokError(f"the draft model has {len(layers)} layers, so no exit behind layer {count}.")
    parent = next((name for name, child in model.named_children() if child is decoder), None)
    name = next((name for name, child in decoder.named_children() if child is layers), None)
    if parent is None or name is None:
        raise VistokError(
            f"{type(model).__name__} does not hold its layers where exits can be cut: take another model."
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    small, inner = _shallow(model), _shallow(decoder)
    small.config = inner.config = config
    inner._modules[name] = layers[:count]
    small._modules[parent] = inner
    return small


def _shallow(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


class Reader:
    """A draft model that reads texts as they grow.

    Args:
        model: a causal LM.
        length: most rows of a text.
        end: most tokens of a text.

    Attributes:
        seen: tokens that it has read of each, int64 [B]; None before the first.
    """

    def __init__(self, model: nn.Module, length: int, end: int):
        self.lm = CachedLM(model, length, end=end)
        self.seen: Tensor | None = None

    def logits(self, text: Tensor, size: Tensor) -> Tensor:
        """Logits [B, V] behind the first ``size`` tokens of each text, reading what is new to it."""
        if self.seen is None:
            found = self.lm.read(text[:, : int(size.max())], size)[:, 0]
        else:
            new = size - self.seen
            depth = torch.arange(int(new.max()), device=text.device)
            tokens = text.gather(1, (self.seen[:, None] + depth).clamp(max=text.shape[1] - 1))
            logits = self.lm.forward(tokens, depth[None], (depth <= depth[:, None])[None])
            self.lm.cache.advance(new)
            last = (new - 1).clamp(min=0)[:, None, None].expand(-1, 1, logits.shape[-1])
            found = logits.gather(1, last)[:, 0]
        self.seen = size
        return found

    def rewind(self, size: Tensor) -> None:
        """Forget what was read behind the first ``size`` tokens."""
        if self.seen is not None:
            self.seen = torch.minimum(self.seen, size - 1)  # the last token is read again, for its logits
            self.lm.cache.crop(self.seen)


class SortedDraft(TextDrafter):
    """Chains from the nested exits of a draft model.

    Args:
        model: loaded by transformers, with the target's tokenizer.
        exits: layers of each exit, rising; the whole model should be the last.
        drafts: longest draft.
        threshold: least probability of an exit's most likely token.
        tokenizer: the model's; compared with the target's where both are known.

    Raises:
        VistokError: exits that do not rise, no drafts, or a threshold outside 0 to 1.
    """

    def __init__(
        self,
        model: nn.Module,
        exits: tuple[int, ...],
        drafts: int = 5,
        threshold: float = 0.4,
        tokenizer: Any | None = None,
    ):
        if not exits or list(exits) != sorted(set(exits)):
            raise VistokError(f"exits are numbers of layers that rise, such as 2, 4, 8, not {list(exits)}.")
        if drafts < 1 or not 0 <= threshold <= 1:
            raise VistokError(f"drafts are at least 1 and threshold within 0 to 1, got {drafts} and {threshold}.")
        self.models = [first_layers(model, count) for count in exits]
        self.model, self.drafts, self.threshold, self.tokenizer = model, drafts, threshold, tokenizer
        self.nodes = drafts + 1

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Take the prompts of a run.

        Raises:
            VistokError: the draft model cannot run behind a tree's mask, or has another tokenizer or vocabulary.
        """
        same_vocabulary(self, model, tokenizer)
        check_model(self.model, 1)
        self.kind = kind_of(params, LawKind.INDEPENDENT)
        end = prompt.ids.shape[1] + length
        self._exits = [Reader(each, end + 2 * self.nodes, end) for each in self.models]
        self._prompt = prompt

    @property
    def forwards(self) -> int:
        """Calls of all exits in this run."""
        return sum(each.lm.forwards for each in self._exits)

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin with the prompt and the first token."""
        self._so_far = TextSoFar(self._prompt, run, self.nodes)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Append what was decided; the exits drop what they read of the draft."""
        for each in self._exits:
            each.rewind(self._so_far.size)
        self._so_far.append(verdict.emitted, verdict.count)

    def propose(self, run: Run) -> TokenTree:
        """Draft until the largest exit is unsure of every sequence."""
        going = run.decided < run.length
        text, tokens, laws, shown = self._so_far.tokens.clone(), [run.root], [], []
        for depth in range(self.drafts):
            logits, sure = self._asked(text, self._so_far.size + depth, going)
            going = going & sure
            if not bool(going.any()):
                break
            law = draft_law(run.params, logits)
            offset = torch.full((1,), depth, device=text.device)
            token = logits.argmax(-1) if run.params.greedy else draw(law, run.uniform(offset, DRAFT, depth)[:, 0])
            text.scatter_(1, (self._so_far.size + depth)[:, None], token[:, None])
            tokens.append(token[:, None])
            laws.append(law)
            shown.append(going)
        return self._chain(run, tokens, laws, shown)

    def _asked(self, text: Tensor, size: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, V] of the smallest exit that is sure, of the largest where none is; and where one is, bool [B]."""
        found, sure = None, torch.zeros_like(going)
        for each in self._exits:
            logits = each.logits(text, size)
            found = logits if found is None else torch.where(sure[:, None], found, logits)
            sure = found.float().softmax(-1).amax(-1) >= self.threshold
            if bool((sure | ~going).all()):
                break
        return found, sure

    def _chain(self, run: Run, tokens: list[Tensor], laws: list[Tensor], shown: list[Tensor]) -> TokenTree:
        drafted, places = torch.cat(tokens, 1), torch.arange(-1, len(shown), device=run.root.device)
        if not shown:
            return TokenTree(drafted, TreeShape(places[None]), self.kind, self._laws(run, laws))
        exists = F.pad(torch.stack(shown, 1), (1, 0), value=True)
        shape = TreeShape(torch.where(exists, places, PADDING))
        return TokenTree(drafted, shape, self.kind, self._laws(run, laws))

    def _laws(self, run: Run, laws: list[Tensor]) -> Tensor | None:
        """Laws behind the nodes; none where decoding is greedy. The last node's is never asked for."""
        if run.params.greedy:
            return None
        text = self._so_far.tokens
        size = text.new_zeros(len(text), 1, self.model.get_input_embeddings().weight.shape[0])
        return torch.cat([*(law[:, None] for law in laws), size.to(laws[0] if laws else torch.float32)], 1)
