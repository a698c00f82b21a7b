"""Drafting with a small causal LM that shares the target's tokenizer.

The draft model reads what was decided and gives the law behind the root; a policy then grows a tree, running the model
on the nodes of a level at a time. The policies of EAGLE drafters fit as well, with the model's logits in the place of
predicted features.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import Chain, chain_shape
from vistok.samplers.policies.sized_growth import SizedLayers, SizedTree, sized_policy
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.step_cost import step_cost
from vistok.samplers.targets.support import check_model, learned_positions
from vistok.samplers.tree import TokenTree

PIECE = 32  # tokens that are read at a time behind a rest


class DraftModel(TextDrafter):
    """A causal LM behind the loop's drafter interface.

    Its vocabulary may be padded to another size than the target's: what only one of them has is never drafted.

    Args:
        model: loaded by transformers.
        policy: which nodes are worth proposing; or ``auto``, DySpec's trees of the depth and size that pay on this
            machine and this text, or none.
        tokenizer: the model's; compared with the target's where both are known. Where sizes differ and none is given,
            the ones in the folders that the models were loaded from are compared.

    Attributes:
        hidden: logits behind the last decided token, [B, 1, V].
        forwards: calls of the model in this run.
        rests: the next tree has no drafts, and what was decided is not read.

    Raises:
        VistokError: a policy that is another word than ``auto``.
    """

    rests = False

    def __init__(
        self,
        model: nn.Module,
        policy: DraftPolicy | Literal["auto"] | None = None,
        tokenizer: Any | None = None,
    ):
        self.model, self.policy, self.tokenizer = model, sized_policy(policy or Chain(), SizedLayers), tokenizer
        self.nodes, self.chain = self.policy.nodes, self.policy.chain

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Take the prompts of a run and its law.

        Raises:
            VistokError: trees cannot run on this model, or its tokenizer is not the target's.
        """
        self.kind = self.policy.kind(params)
        self._prompt, self._own = prompt, self.model.get_input_embeddings().weight.shape[0]
        same_tokenizer(self, model, tokenizer)
        # Positions beyond the model's table stand at the table's end: such drafts are bad, not wrong.
        check_model(self.model, 1)
        end, table = prompt.ids.shape[1] + length, learned_positions(self.model)
        self._lm = CachedLM(
            self.model,
            end + self.nodes + max(self.nodes, self.policy.slots, PIECE),
            end=end if table is None else min(end, table),
        )
        if isinstance(self.policy, SizedTree):
            batch = len(prompt.ids)
            self.policy.measure(step_cost(model, batch), step_cost(self.model, batch))

    @property
    def forwards(self) -> int:
        """Calls of the model in this run."""
        return self._lm.forwards

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin with the prompt and the first token, to be read when they are needed."""
        self._size = prefill.logits.shape[-1]
        self._read: Tensor | None = None
        if isinstance(self.policy, SizedTree):
            self.policy.begin(run)
        else:
            self._catch_up(run)

    def _catch_up(self, run: Run) -> None:
        """Read what was decided since the last time."""
        prompt = self._prompt
        if self._read is None:
            width = int(run.decided.max())
            tokens = F.pad(prompt.flush, (0, width))
            places = prompt.count[:, None] + torch.arange(width, device=tokens.device)
            tokens = tokens.scatter(1, places, run.tokens[:, :width])
            self.hidden = self._common(self._lm.read(self._known(tokens), prompt.count + self._real(run)))
            self._read = self._real(run)
            return
        while True:
            count = (self._real(run) - self._read).clamp(max=PIECE)  # the cache has room for so many behind any text
            width = int(count.max())
            if width == 0:
                return
            depth = torch.arange(width, device=count.device)
            tokens = run.tokens.gather(1, (self._read[:, None] + depth).clamp(max=run.tokens.shape[1] - 1))
            seen = (depth <= depth[:, None])[None]
            logits = self._common(self._lm.forward(self._known(tokens), depth[None], seen))
            self._lm.cache.advance(width if int(count.min()) == width else count)
            last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, logits.shape[-1])
            self.hidden = torch.where((count > 0)[:, None, None], logits.gather(1, last), self.hidden)
            self._read = self._read + count

    @staticmethod
    def _real(run: Run) -> Tensor:
        """Decided tokens that exist, int64 [B]: a text that ended early counts as wholly decided."""
        return torch.minimum(run.decided, run.final)

    def _known(self, tokens: Tensor) -> Tensor:
        """Tokens as the model can read them: padding entries that only the target has become its last row."""
        return tokens.clamp(max=self._own - 1)

    def _common(self, logits: Tensor) -> Tensor:
        """Logits over the target's vocabulary; what the model does not have is never drafted."""
        mine = logits.shape[-1]
        return (
            logits[..., : self._size] if mine >= self._size else F.pad(logits, (0, self._size - mine), value=-torch.inf)
        )

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Learns which drafts were right, where their number follows from that."""
        if isinstance(self.policy, SizedTree):
            self.policy.learn(run, tree, verdict)

    def propose(self, run: Run) -> TokenTree:
        """Read what was decided and grow a tree."""
        if isinstance(self.policy, SizedTree) and not self.policy.choose(run):
            return self.rest(run)
        self.rests = False
        self._catch_up(run)
        return self.policy.grow(self, run)

    def rest(self, run: Run) -> TokenTree:
        """No drafts; nothing is read."""
        self.rests = True
        return TokenTree(run.root, chain_shape(1, run.root.device))

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """The model's logits stand for themselves."""
        return hidden

    def token(self, index: Tensor) -> Tensor:
        """Tokens of entries of the logits."""
        return index

    def expand(self, tokens: Tensor, features: Tensor, seen: Tensor, slots: Tensor) -> Tensor:
        """Logits behind draft nodes, whose rows the cache keeps until ``forget``; see ``HeadDrafter.expand``."""
        depth = slots[None] if slots.ndim == 1 else slots
        logits = self._common(self._lm.forward(self._known(tokens), depth, seen))
        self._lm.cache.advance(tokens.shape[1])
        return logits

    def forget(self, slots: int) -> None:
        """Drop the last draft rows."""
        if slots:
            self._lm.cache.advance(-slots)


def same_tokenizer(drafter: DraftModel, target: nn.Module, tokenizer: Any | None) -> None:
    """Checks that a draft model and its target have the same tokenizer.

    Raises:
        VistokError: they give tokens other numbers.
    """
    sizes = [model.get_input_embeddings().weight.shape[0] for model in (drafter.model, target)]
    pair = [drafter.tokenizer, tokenizer]
    if sizes[0] != sizes[1]:
        pair = [given or _tokenizer_of(model) for given, model in zip(pair, (drafter.model, target), strict=True)]
    if None not in pair:
        if pair[0].get_vocab() != pair[1].get_vocab():
            raise VistokError(
                "the draft model has another tokenizer than the target, so its drafts mean other words: take one with "
                "the target's tokenizer."
            )
    elif sizes[0] != sizes[1]:
        warnings.warn(
            f"the draft model has {sizes[0]} tokens and the target {sizes[1]}, and nothing tells whether that is "
            "padding of one tokenizer: pass DraftModel(tokenizer=...) and Speculation(tokenizer=...) to have them "
            "compared.",
            stacklevel=2,
        )


def same_vocabulary(drafter: Any, target: nn.Module, tokenizer: Any | None) -> None:
    """Checks that a drafter's ``model`` has the tokenizer of its target, and as many tokens.

    Raises:
        VistokError: they give tokens other numbers, or the sizes differ.
    """
    same_tokenizer(drafter, target, tokenizer)
    drafted, known = (model.get_input_embeddings().weight.shape[0] for model in (drafter.model, target))
    if drafted != known:
        raise VistokError(f"the draft model has {drafted} tokens and the target {known}: take one of its size.")


def _tokenizer_of(model: nn.Module) -> Any | None:
    """The tokenizer in the folder that a model was loaded from; None if there is none."""
    from transformers import AutoTokenizer

    folder = getattr(model, "name_or_path", "")
    if not folder or not Path(folder).is_dir():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None
