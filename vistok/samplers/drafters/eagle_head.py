"""Drafting text with an EAGLE head: EAGLE-1, EAGLE-2 and EAGLE-3 (arXiv 2401.15077, 2406.16858, 2503.01840).

The network, its trees and its rounds are those that draft pictures, with one-dimensional rotations. A head reads
features of the target for the whole prompt, each with the token behind it: the final ones, and borrows the target's
output layer; or, EAGLE-3, the states that enter some layers, and has an output layer of its own, whose tokens are some
of the target's. Rotations reach as far as a text does, whatever length the head's configuration names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.drafter import text_rope
from vistok.models.heads.eagle import EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.eagle3_config import Eagle3Config
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.drafters.text import TextDrafter, fitted
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.sized_growth import SizedDynamic, SizedLayers, SizedTree, sized_policy
from vistok.samplers.run import Run, Scores
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.step_cost import head_cost, step_cost
from vistok.samplers.tree import LawKind
from vistok.zoo.checkpoint import read_state_dict
from vistok.zoo.pretrained import CONFIG_FILE
from vistok.zoo.registry import resolve


class EagleHead(HeadDrafter, TextDrafter):
    """An EAGLE network for text behind the loop's drafter interface.

    Args:
        network: made for the target, with its dtype and on its device.
        policy: which nodes are worth proposing; EAGLE-2's tree if None; with ``auto`` the chains and trees that pay on
            this machine and this text, or none: of the most likely tokens where decoding is greedy, else drawn.

    Raises:
        VistokError: a network of another kind, or a policy that is another word than ``auto``.
    """

    features = True

    def __init__(self, network: EagleNetwork | Eagle3Network, policy: DraftPolicy | Literal["auto"] | None = None):
        known = isinstance(network, EagleNetwork | Eagle3Network)
        if not known or (isinstance(network, EagleNetwork) and network.config.grid):
            kind = "an EAGLE network for pictures" if known else f"of type {type(network).__name__}"
            raise VistokError(
                f"text is drafted by an EAGLE network (vistok.models.heads.eagle) with grid 0, but this head is {kind}."
            )
        self.network = network
        self._grow_by(policy or DynamicTree())

    def _grow_by(self, policy: DraftPolicy | Literal["auto"]) -> None:
        """Take a policy; ``auto`` becomes two, as what is learnt of likely tokens says nothing of drawn ones."""
        self._sampling = sized_policy(policy, SizedLayers)
        self._greedy = self.policy = sized_policy(policy, SizedDynamic)
        self.nodes, self.chain = self.policy.nodes, self.policy.chain

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Take the target, whose output layer turns features into logits, and the prompts of a run.

        Raises:
            VistokError: the head was made for another target.
        """
        network, output = self.network, model.get_output_embeddings()
        third = isinstance(network, Eagle3Network)
        if third and network.borrows:
            network.share_embedding(model.get_input_embeddings().weight)
        config, own, theirs = network.config, network.embed_tokens.weight, output.weight
        width = (config.target_hidden_size if third else 0) or config.hidden_size
        pairs = {
            "hidden width": (width, theirs.shape[1]),
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
            network.rope = text_rope(config, slots).to(network.rope.device)
        self.policy = self._greedy if params.greedy else self._sampling
        self.head, self.params, self.length, self._prompt = output, params, length, prompt
        self.kind, self.forwards = self.policy.kind(params), 0
        self._narrow, self._tokens = self.kind is LawKind.DETERMINISTIC, None
        if isinstance(self.policy, SizedTree):
            batch = len(prompt.ids)
            self.policy.measure(step_cost(model, batch), head_cost(network, output, batch))
        if third:
            self.features = aux_layers(config, model.config.get_text_config(decoder=True).num_hidden_layers)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Draft logits [B, T, V]: over the target's vocabulary, without a chance for what the head does not know; over
        the head's own where no law is asked for.
        """
        logits = super().logits(hidden, positions)
        size = self.network.config.vocab_size
        if self._narrow or logits.shape[-1] == size:
            return logits
        if self._tokens is None:
            self._tokens = self.network.token(torch.arange(logits.shape[-1], device=logits.device))
        return logits.new_full((*logits.shape[:-1], size), -torch.inf).index_copy(-1, self._tokens, logits)

    def token(self, index: Tensor) -> Tensor:
        """Tokens of the target of entries of the logits."""
        return self.network.token(index) if self._narrow else index

    def start(self, run: Run, prefill: Scores) -> None:
        """Read the features of the prompt, each with the token behind it; the last one's is the first new token."""
        prompt = self._prompt
        tokens = F.pad(prompt.flush[:, 1:], (0, 1)).scatter(1, prompt.count[:, None] - 1, run.tokens[:, :1])
        self.begin(run, prefill.hidden, tokens, prompt.count)


def aux_layers(config: Eagle3Config, layers: int) -> tuple[int, ...]:
    """The layers of the target whose entering states an EAGLE-3 head reads.

    Args:
        config: of the head.
        layers: how many the target has.

    Raises:
        VistokError: the target has no such layer.
    """
    wanted = config.aux_layers or (2, layers // 2, layers - 3)
    absent = [layer for layer in wanted if not 0 <= layer < layers]
    if absent:
        raise VistokError(
            f"the EAGLE-3 head reads the state that enters layer {absent[0]}, but the target has layers 0 to "
            f"{layers - 1}: take the head of this model."
        )
    return wanted


def load_head(name: str | Path, model: nn.Module) -> EagleNetwork | Eagle3Network:
    """An EAGLE head of any generation from its folder or hub id, with the target's dtype and on its device.

    Raises:
        VistokError: the name leads nowhere, or the weights are those of something else.
    """
    folder = resolve(name, CONFIG_FILE).parent
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model.bin")]
    third = any("lm_head.weight" in read_state_dict(file) for file in files)
    network = (Eagle3Network if third else EagleNetwork).from_pretrained(name)
    return fitted(network, model)
