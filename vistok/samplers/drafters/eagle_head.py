"""Drafting text with an EAGLE head: EAGLE-1 and EAGLE-2 (arXiv 2401.15077, 2406.16858).

The network, its trees and its rounds are those that draft pictures, with one-dimensional rotations. A head reads the
target's final features of the whole prompt, each with the token behind it, and borrows the target's output layer.
Rotations reach as far as a text does, whatever length the head's configuration names.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from vistok.errors import VistokError
from vistok.models.heads.eagle import EagleNetwork
from vistok.ops import rope_1d
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.loop import Run, Scores
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.targets.causal_lm import Prompt


class EagleHead(HeadDrafter, TextDrafter):
    """An EAGLE network for text behind the loop's drafter interface.

    Args:
        network: made for the target, with its dtype and on its device.
        policy: which nodes are worth proposing; EAGLE-2's tree if None.

    Raises:
        VistokError: a network of another kind.
    """

    features = True

    def __init__(self, network: EagleNetwork, policy: DraftPolicy | None = None):
        if not isinstance(network, EagleNetwork) or network.config.grid:
            kind = (
                "an EAGLE network for pictures"
                if isinstance(network, EagleNetwork)
                else f"of type {type(network).__name__}"
            )
            raise VistokError(
                f"text is drafted by an EAGLE network (vistok.models.heads.eagle) with grid 0, but this head is {kind}."
            )
        self.network, self.policy = network, policy or DynamicTree()
        self.nodes, self.chain = self.policy.nodes, self.policy.chain

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Take the target, whose output layer turns features into logits, and the prompts of a run.

        Raises:
            VistokError: the head was made for another target.
        """
        network, output = self.network, model.get_output_embeddings()
        config, own, theirs = network.config, network.embed_tokens.weight, output.weight
        pairs = {
            "hidden width": (config.hidden_size, theirs.shape[1]),
            "vocabulary": (config.vocab_size, theirs.shape[0]),
            "dtype": (own.dtype, theirs.dtype),
            "device": (own.device, theirs.device),
        }
        for what, (mine, wanted) in pairs.items():
            if mine != wanted:
                mend = "move it with network.to(...)" if what in ("dtype", "device") else "take the head of this model"
                raise VistokError(f"the EAGLE head's {what} is {mine}, but the model's is {wanted}: {mend}.")
        slots = prompt.ids.shape[1] + length + self.nodes
        if len(network.rope) < slots:
            network.rope = rope_1d(slots, config.head_dim, config.rope_theta).to(network.rope)
        self.head, self.params, self.length, self._prompt = output, params, length, prompt
        self.kind, self.forwards = self.policy.kind(params), 0

    def start(self, run: Run, prefill: Scores) -> None:
        """Read the features of the prompt, each with the token behind it; the last one's is the first new token."""
        prompt = self._prompt
        tokens = F.pad(prompt.flush[:, 1:], (0, 1)).scatter(1, prompt.count[:, None] - 1, run.tokens[:, :1])
        self.reset(len(tokens), tokens.shape[1] + self.length)
        self.hidden = prefill.hidden[:, :1]
        self.feed(prefill.hidden, tokens, prompt.count)
