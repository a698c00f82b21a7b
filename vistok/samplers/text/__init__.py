"""Speculative decoding of text on the package's draft-verify loop: any Hugging Face causal LM as the target."""

from vistok.samplers.text.chains import Chain, IndependentChains
from vistok.samplers.text.draft_model import DraftModel
from vistok.samplers.text.dyspec import DynamicBudget, DynamicLayers
from vistok.samplers.text.eagle_head import EagleHead
from vistok.samplers.text.generate import Speculation, TextOutput, generate
from vistok.samplers.text.lookup import PromptLookup
from vistok.samplers.text.recycling import TokenRecycling
from vistok.samplers.text.rsd import Branching, StochasticBeam
from vistok.samplers.text.target import Prompt, TextTarget
from vistok.samplers.text.trees import TREE_2_2_2, best_tree

__all__ = [
    "TREE_2_2_2",
    "Branching",
    "Chain",
    "DraftModel",
    "DynamicBudget",
    "DynamicLayers",
    "EagleHead",
    "IndependentChains",
    "Prompt",
    "PromptLookup",
    "Speculation",
    "StochasticBeam",
    "TextOutput",
    "TextTarget",
    "TokenRecycling",
    "best_tree",
    "generate",
]
