"""How tokens are drawn: one draft-verify loop, and the samplers that are made of it. Names load on first use."""

from __future__ import annotations

import warnings
from typing import Any

from vistok.registry import lazy_attributes

_EXPORTS = {
    "vistok.samplers.drafters.aded": ("Aded",),
    "vistok.samplers.drafters.lexical_units": ("LexicalUnits",),
    "vistok.samplers.drafters.nested": ("NestedDraft",),
    "vistok.samplers.drafters.plain": ("Autoregressive",),
    "vistok.samplers.drafters.jacobi": ("SpeculativeJacobi",),
    "vistok.samplers.drafters.clover": ("CloverHead",),
    "vistok.samplers.drafters.eagle": ("Eagle",),
    "vistok.samplers.drafters.eagle_head": ("EagleHead",),
    "vistok.samplers.drafters.draft_model": ("DraftModel",),
    "vistok.samplers.drafters.extra_rows": ("ExtraRowDrafter",),
    "vistok.samplers.drafters.lookup": ("PromptLookup",),
    "vistok.samplers.drafters.medusa": ("MedusaHeads",),
    "vistok.samplers.drafters.rasd": ("Rasd",),
    "vistok.samplers.drafters.sorted_draft": ("SortedDraft",),
    "vistok.samplers.drafters.text": ("TextDrafter",),
    "vistok.samplers.drafters.recycling": ("Recycling", "TokenRecycling"),
    "vistok.samplers.verifiers.lantern": ("Lantern",),
    "vistok.samplers.policies.chains": ("Chain", "IndependentChains"),
    "vistok.samplers.policies.dynamic": ("DynamicTree",),
    "vistok.samplers.policies.dyspec": ("DynamicBudget", "DynamicLayers"),
    "vistok.samplers.policies.retrieval": ("Datastore",),
    "vistok.samplers.policies.rsd": ("Branching", "StochasticBeam"),
    "vistok.samplers.policies.sparse": ("SparseTrees", "best_sparse_trees"),
    "vistok.samplers.policies.static": ("StaticTree",),
    "vistok.samplers.policies.trigrams": ("Trigrams",),
    "vistok.samplers.policies.trees": ("TREE_2_2_2", "best_tree"),
    "vistok.samplers.verifiers.confidence": ("KeepAll",),
    "vistok.samplers.verifiers.judge": ("Judge",),
    "vistok.samplers.verifiers.typical": ("TypicalTree",),
    "vistok.samplers.constraints": ("Constrained", "Constraint"),
    "vistok.samplers.continuous": ("ContinuousSpeculative", "MaskedAutoregressive", "NextEntity"),
    "vistok.samplers.masked": ("Masked",),
    "vistok.samplers.targets.llamagen": ("ImageTarget",),
    "vistok.samplers.targets.causal_lm": ("Prompt", "TextTarget"),
    "vistok.samplers.speculation": ("Speculation", "TextOutput", "generate"),
    "vistok.samplers.pearl": ("Pearl",),
    "vistok.samplers.acceleration": ("Acceleration", "accelerate"),
    "vistok.samplers.targets.codes": ("CodeTarget",),
    "vistok.samplers.interface": ("AutoregressiveSampler", "DraftHead", "DraftPolicy", "Sampler"),
    "vistok.samplers.named": ("SAMPLERS", "TEXT_DRAFTERS", "parse_sampler", "sampler_options"),
    "vistok.samplers.params": ("SamplingParams",),
    "vistok.samplers.noise": ("Noise",),
    "vistok.samplers.stats": ("Stats",),
}
_TABLE = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_TABLE)
_get, __dir__ = lazy_attributes(__name__, _TABLE)


def __getattr__(name: str) -> Any:
    if name == "Law":  # its name until 0.1
        warnings.warn("vistok.samplers.Law is SamplingParams now: use that name.", FutureWarning, 2)
        name = "SamplingParams"
    return _get(name)
