"""The ways to decode text that a comparison runs where none is chosen.

``standard_entries`` lists them: transformers' own, drafters without a model, draft models with every tree policy and
the rules that fit it, and lossy verifiers. What needs weights that are not there is left out.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from vistok.data.text import documents
from vistok.eval.decoding.comparison import Entry
from vistok.models.heads.eagle import EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.judge import JudgeHead
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers.drafters.aded import Aded
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.drafters.eagle_head import EagleHead
from vistok.samplers.drafters.extra_rows import ExtraRowDrafter
from vistok.samplers.drafters.lookup import PromptLookup
from vistok.samplers.drafters.rasd import Rasd
from vistok.samplers.drafters.recycling import TokenRecycling
from vistok.samplers.loop import Verifier
from vistok.samplers.named import TEXT_DRAFTERS
from vistok.samplers.policies.chains import Chain, IndependentChains
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.dyspec import DynamicBudget, DynamicLayers
from vistok.samplers.policies.retrieval import Datastore
from vistok.samplers.policies.rsd import Branching, StochasticBeam
from vistok.samplers.policies.trees import best_tree
from vistok.samplers.policies.trigrams import Trigrams
from vistok.samplers.speculation import Speculation, TextDrafter
from vistok.samplers.text_drafters import TRAINED, lexical_units, trained_for
from vistok.samplers.tree import LawKind
from vistok.samplers.verifiers.candidates import SampleMatch, TreeVerifier
from vistok.samplers.verifiers.confidence import KeepAll
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.judge import Judge
from vistok.samplers.verifiers.relaxed import RelaxedTree, nearest_codes
from vistok.samplers.verifiers.rules import KSequential

# How often candidate r of Token Recycling was the next token of text-mini's greedy continuations of training modules
# (762 tokens); taken to be the same at every depth.
RECYCLING = [[0.732, 0.051, 0.028, 0.017, 0.013, 0.009, 0.007, 0.004]] * 10
HEAD_TREES = {"chain 3": Chain(3), "tree 6": DynamicTree(6, 3, 2), "tree 16": DynamicTree(16, 3, 4)}
CORPUS = 8  # one module in so many is read


def standard_entries(
    model: nn.Module,
    draft: nn.Module | None,
    sampling: bool,
    tokenizer: Any | None = None,
    head: EagleNetwork | Eagle3Network | None = None,
) -> list[Entry]:
    """Returns what a comparison runs; plain generate comes first.

    Args:
        model: the target.
        draft: a small model with its tokenizer; what needs one is left out without.
        sampling: tokens are drawn; else decoding is greedy, which all lossless rules do alike.
        tokenizer: the target's; what needs a corpus is left out without.
        head: an EAGLE head of the target.
    """
    found = [Entry("generate", {}), Entry("transformers prompt lookup", {"prompt_lookup_num_tokens": 10})]
    if draft is not None:
        found.append(Entry("transformers assisted", {"assistant_model": draft}))
        found.append(Entry("transformers assisted 4", {"assistant_model": _constant_assistant(draft, 4)}))
    found += [_speculative("plain", None), _speculative("lookup", PromptLookup())]
    found.append(_speculative("recycling 80", TokenRecycling()))
    for size in (8, 16, 32):
        found.append(_speculative(f"recycling {size}", TokenRecycling(best_tree(RECYCLING, size))))
    if head is not None:
        found += [_speculative(f"head, {name}", EagleHead(head, policy)) for name, policy in HEAD_TREES.items()]
        found.append(_speculative("head, auto", EagleHead(head, "auto")))
    found += _sized_entries(model, draft)
    found += named_entries(model, tokenizer, draft)
    units = lexical_units(model, tokenizer)
    if units is not None:
        found.append(_speculative("lexical-units, unchecked", units, KeepAll()))
    if tokenizer is not None:
        found += corpus_entries(tokenizer, draft)
    if draft is not None:
        found += _policy_entries(draft, sampling)
        found += _lossy_entries(model, draft)
    return found


def _speculative(name: str, drafter: TextDrafter | None, verifier: Verifier | None = None) -> Entry:
    """An entry that decodes with a drafter and a verifier of this package."""
    lossless = verifier is None or verifier.lossless
    return Entry(name, {"custom_generate": Speculation(drafter, verifier)}, lossless)


def _sized_entries(model: nn.Module, draft: nn.Module | None) -> list[Entry]:
    """Drafters whose trees have the size that pays on this machine."""
    found = [_speculative("recycling auto", TokenRecycling("auto"))]
    prompt_tokens = trained_for(model, "prompt-tokens")
    if prompt_tokens is not None:
        drafter = ExtraRowDrafter(PromptTokens.from_pretrained(prompt_tokens), "auto")
        found.append(_speculative("ppd auto", drafter))
    if draft is not None:
        found.append(_speculative("dyspec auto", DraftModel(draft, "auto")))
        found.append(_speculative("rasd auto", Rasd(DraftModel(draft, "auto"))))
    return found


def _policy_entries(draft: nn.Module, sampling: bool) -> list[Entry]:
    """Every tree policy over a draft model, with each of the rules that fit it where tokens are drawn."""
    independent = frozenset({LawKind.INDEPENDENT})
    policies = {
        "chain 4": (Chain(4), ExactChain()),
        "confident chain 8": (Chain(8, 0.3), ExactChain()),
        "independent 3x3": (IndependentChains(3, 3), TreeVerifier(KSequential(), independent)),
        "branching 8": (Branching((8,)), None),
        "branching 6-2": (Branching((6, 2)), None),
        "branching 3-2-1-1": (Branching((3, 2, 1, 1)), None),
        "beam 4x4": (StochasticBeam(4, 4), None),
        "dyspec layers": (DynamicLayers(), None),
        "dyspec budget 8": (DynamicBudget(8), None),
        "eagle-2 tree": (DynamicTree(16, 3, 4), None),
    }
    if not sampling:
        return [_speculative(name, DraftModel(draft, policy)) for name, (policy, _) in policies.items()]
    found = []
    for name, (policy, verifier) in policies.items():
        rule = "exact" if isinstance(policy, Chain) else "k-sequential" if verifier else "recursive"
        if not isinstance(policy, DynamicTree):
            found.append(_speculative(f"{name}, {rule}", DraftModel(draft, policy), verifier))
        if name.startswith("independent"):
            found.append(_speculative(f"{name}, recursive", DraftModel(draft, policy)))
        found.append(_speculative(f"{name}, match", DraftModel(draft, policy), SampleMatch()))
    return found


def _lossy_entries(model: nn.Module, draft: nn.Module) -> list[Entry]:
    """Verifiers that trade the target's law for speed."""
    found = []
    judge = trained_for(model, "judge")
    if judge is not None:
        for threshold in (0.5, 0.8):
            rule = Judge(JudgeHead.from_pretrained(judge), threshold)
            found.append(_speculative(f"judge {threshold}, chain 4", DraftModel(draft, Chain(4)), rule))
    neighbours = nearest_codes(model.get_input_embeddings().weight, 10)
    for delta in (0.1, 0.3):
        drafter = DraftModel(draft, Branching((3, 2, 1, 1)))
        found.append(_speculative(f"relaxed {delta}, branching", drafter, RelaxedTree(neighbours, 10, delta)))
    return found


def named_entries(model: nn.Module, tokenizer: Any | None, draft: nn.Module | None) -> list[Entry]:
    """Returns an entry for every drafter that goes by a name, other packages' too, and has none of its own above."""
    found = []
    for name, build in TEXT_DRAFTERS.usable().items():
        if name in ("lookup", "recycling", "draft", "eagle"):
            continue
        drafter = build(model, tokenizer, draft)
        if drafter is not None:
            found.append(Entry(name, {"custom_generate": Speculation(drafter)}))
    return found


def trained_entry(name: str, weights: str, model: nn.Module) -> Entry:
    """Returns an entry that drafts with weights that were trained for the target, see ``TRAINED``."""
    return _speculative(f"{name}, {weights}", TRAINED[name].load(weights, model))


def corpus_entries(tokenizer: Any, draft: nn.Module | None) -> list[Entry]:
    """Returns entries whose drafters know a part of the modules that models train on, which they read when they run."""

    @functools.cache
    def texts() -> list[list[int]]:
        return [tokenizer(text, verbose=False).input_ids for text in documents("train")[::CORPUS]]

    found: dict[str, Callable[[], TextDrafter]] = {
        "aded, corpus": lambda: Aded(Trigrams.of_texts(texts())),
        "static tri-grams, corpus": lambda: Aded(Trigrams.of_texts(texts()), boost=0.0),
    }
    if draft is not None:
        found["rasd, corpus"] = lambda: Rasd(DraftModel(draft, Chain(4)), Datastore.of_texts(texts(), tokenizer))
    return [Entry(name, lambda make=make: {"custom_generate": Speculation(make())}) for name, make in found.items()]


def _constant_assistant(draft: nn.Module, tokens: int) -> nn.Module:
    """The same model, told by its generation config to draft so many tokens whatever it thinks of them."""
    assistant = copy.copy(draft)
    assistant.generation_config = copy.deepcopy(draft.generation_config)
    assistant.generation_config.num_assistant_tokens = tokens
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant
