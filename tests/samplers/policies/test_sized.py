"""Trees of the size that pays: none where rows are dear or nothing is foreseen, large where they are cheap."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import VOCABULARY, tiny, tiny_clover, tiny_head, tiny_prompt_tokens, tiny_transfer
from vistok.errors import VistokError
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.eagle3_config import Eagle3Config
from vistok.samplers import (
    CloverHead,
    DraftModel,
    EagleHead,
    ExtraRowDrafter,
    Rasd,
    SparseTrees,
    TokenRecycling,
    generate,
)
from vistok.samplers.policies import sized
from vistok.samplers.policies.sized import (
    AGAIN,
    LONGEST,
    Accuracy,
    Follows,
    Option,
    Sizer,
    interpolated,
    size_options,
)
from vistok.samplers.policies.trees import best_tree
from vistok.samplers.targets.step_cost import WIDTHS, step_cost

FLAT = dict.fromkeys(WIDTHS, 1.0)
STEEP = {width: float(width) for width in WIDTHS}
SURE = [[0.9, 0.05]] * 8


def best_size(accuracy, cost):
    """The best tree of any size, or none."""
    best = Sizer(watches=True).next(lambda: size_options(accuracy, cost), interpolated(cost, 1))
    return () if best is None else best.tree


def test_the_empty_tree_is_chosen_where_nothing_else_pays():
    assert best_size(SURE, STEEP) == ()  # two rows cost two steps
    assert best_size([[0.0, 0.0]] * 8, FLAT) == ()
    assert len(best_size(SURE, FLAT)) > 8
    small = best_size(SURE, {width: 1 + 0.05 * width for width in WIDTHS})
    assert 0 < len(small) < len(best_size(SURE, FLAT))


def test_expected_tokens_of_trees_of_every_size():
    options = {len(option.tree): option for option in size_options(SURE, FLAT)}
    assert options[2].tokens == pytest.approx(1 + 0.9 + 0.81)
    for size, option in options.items():
        assert option.tree == best_tree(SURE, size)
        chances = [math.prod(SURE[depth][rank] for depth, rank in enumerate(path)) for path in option.tree]
        assert option.tokens == pytest.approx(1 + sum(chances))


def test_costs_between_those_that_were_measured():
    assert interpolated({1: 1.0, 4: 4.0}, 2) == pytest.approx(2.0)
    assert interpolated({1: 1.0, 4: 4.0}, 9) == 4.0


def test_accuracy_follows_the_text_and_forgets():
    accuracy = Accuracy(3)
    for _ in range(300):
        accuracy.learn(1, True)
    assert accuracy.table()[1][0] < 0.05
    for _ in range(300):
        accuracy.learn(0, True)
    table = accuracy.table()
    assert table[1][0] > 0.9 and table[1][0] >= table[1][1] >= table[1][2]
    assert table[0] == Accuracy(3).table()[0]  # nothing was learnt about unforeseen tokens


def test_a_step_is_measured_once():
    model = tiny()
    cost = step_cost(model)
    assert set(cost) == set(WIDTHS) and min(cost.values()) > 0
    assert step_cost(model) is cost


def third_head(drafted=0):
    """An EAGLE-3 head that drafts every token, or the last ``drafted`` ones."""
    torch.manual_seed(6)
    config = Eagle3Config(VOCABULARY, 16, 24, 4, num_key_value_heads=2, aux_layers=(0, 1, 1), draft_vocab_size=drafted)
    head = Eagle3Network(config).eval().requires_grad_(False).double()
    if drafted:
        head.d2t.fill_(VOCABULARY - drafted)
    return head


SIZED = {
    "recycling": lambda: TokenRecycling("auto"),
    "prompt tokens": lambda: ExtraRowDrafter(tiny_prompt_tokens(), "auto"),
    "prompt tokens, two rows each, that look four ahead": lambda: ExtraRowDrafter(tiny_prompt_tokens(4, 2), "auto"),
    "hidden transfer": lambda: ExtraRowDrafter(tiny_transfer(), "auto"),
    "eagle head": lambda: EagleHead(tiny_head(), "auto"),
    "eagle-3 head": lambda: EagleHead(third_head(), "auto"),
    "eagle-3 head of few tokens": lambda: EagleHead(third_head(5), "auto"),
    "clover": lambda: CloverHead(tiny_clover(), "auto"),
    "draft model": lambda: DraftModel(tiny(seed=1), "auto"),
    "the target as its own draft model": lambda: DraftModel(tiny(), "auto"),
    "retrieval beside a draft model": lambda: Rasd(DraftModel(tiny(seed=1), "auto")),
}


def costing(monkeypatch, cost, call=0.05):
    """A machine on which steps cost this by their rows, and calls of draft networks that much."""
    monkeypatch.setattr(sized, "seconds", lambda device: 0.0)  # steps are as expected
    for name in ("recycling", "draft_model", "eagle_head", "extra_rows"):
        monkeypatch.setattr(f"vistok.samplers.drafters.{name}.step_cost", lambda model, batch: cost)
    monkeypatch.setattr("vistok.samplers.drafters.eagle_head.head_cost", lambda *a: dict.fromkeys(WIDTHS, call))


@pytest.mark.parametrize("cost", [FLAT, STEEP], ids=["rows are free", "rows are dear"])
@pytest.mark.parametrize("name", SIZED)
def test_greedy_tokens_are_the_targets_at_any_cost(name, cost, monkeypatch):
    costing(monkeypatch, cost)
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    drafter = SIZED[name]()
    expected = tiny().generate(**ragged(), **options)
    for _ in range(2):  # what was learnt, and how long it rests, stays with the drafter
        found = generate(tiny(), ragged(), drafter, **options)
        assert torch.equal(found.sequences, expected)
    if cost is STEEP and not isinstance(drafter, Rasd):
        assert int(found.stats.proposed.max()) <= 8 * AGAIN  # two trials


@pytest.mark.parametrize(
    "name", ["eagle head", "eagle-3 head", "clover", "draft model", "retrieval beside a draft model"]
)
def test_what_was_decided_during_a_long_rest_is_read_in_pieces(name, monkeypatch):
    """Texts that ended early stand far ahead of those that went on."""
    costing(monkeypatch, FLAT)
    plain = tiny().generate(**ragged(), max_new_tokens=100, do_sample=False, pad_token_id=0)
    ends = [int(plain[1, 7 + 40]), int(plain[2, 7 + 70])]
    options = {"max_new_tokens": 100, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
    expected = tiny().generate(**ragged(), **options)
    for rest in (3, 50, 80):
        drafter = SIZED[name]()
        policy = getattr(drafter, "drafter", drafter).policy
        policy.sizer._left, policy.sizer._price = rest, math.inf  # whatever the run
        assert torch.equal(generate(tiny(), ragged(), drafter, **options).sequences, expected)


def test_what_pays_is_drafted(monkeypatch):
    costing(monkeypatch, FLAT)
    monkeypatch.setattr(
        "vistok.samplers.drafters.draft_model.step_cost",
        lambda model, batch: FLAT if model is tiny() else dict.fromkeys(WIDTHS, 0.01),
    )
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    twin = copy.deepcopy(tiny())  # the best of all draft models
    found = generate(tiny(), ragged(), DraftModel(twin, "auto"), **options)
    assert found.stats.mean_accepted_length > 3
    found = generate(tiny(), ragged(), TokenRecycling("auto"), **options)
    assert int(found.stats.forwards.max()) < 45


class Machine:
    """Steps of one text under a sizer, on a clock of their own."""

    def __init__(self, monkeypatch, sizer):
        self.now, self.tokens, self.drafted, self.sizer = 0.0, 0, [], sizer
        monkeypatch.setattr(sized, "seconds", lambda device: self.now)

    def run(self, steps, options, tokens, seconds, plain=1.0):
        """What a step with drafts decides and takes, from its option; without, one token in ``plain`` seconds."""
        run = SimpleNamespace(decided=torch.tensor([1]), length=2)
        for _ in range(steps):
            found = self.sizer.next(lambda: options, plain)
            count = 1 if found is None else tokens(found)
            self.now += plain if found is None else seconds(found)
            self.tokens += count
            self.drafted.append(None if found is None else found.tree)
            self.sizer.learn(run, SimpleNamespace(count=torch.tensor([count])))

    def share(self, last=0):
        """Steps with drafts among the last ones."""
        return sum(tree is not None for tree in self.drafted[-last:]) / len(self.drafted[-last:])


def test_a_tree_is_tried_again_and_taken_when_it_begins_to_pay(monkeypatch):
    machine, options = Machine(monkeypatch, Sizer()), [Option("small", 3.0, 2.0), Option("large", 4.0, 3.0)]
    machine.run(600, options, lambda option: 1, lambda option: option.seconds)
    assert 0 < machine.share() < 0.1
    machine.run(LONGEST, options, lambda option: round(option.tokens), lambda option: option.seconds)
    assert machine.share(100) > 0.9
    assert Sizer(watches=True).next(lambda: [Option("small", 1.0, 2.0)], 1.0) is None


def test_a_chain_that_pays_is_kept_from_the_first_trial_on(monkeypatch):
    machine = Machine(monkeypatch, Sizer())
    machine.run(400, [Option("small", 1.5, 1.4)], lambda option: 2, lambda option: 1.5)
    assert machine.share() > 0.95


def test_what_steps_take_beside_their_forwards_decides(monkeypatch):
    """The wide tree promises more by its forwards, and its steps take longer than these."""
    machine = Machine(monkeypatch, Sizer())
    options = [Option("chain", 2.0, 1.2, (0, 1)), Option("wide", 2.4, 1.3, (1, 1))]
    machine.run(300, options, lambda option: 2, lambda option: 1.3 if option.tree == "chain" else 1.8)
    assert machine.drafted[-1] == "chain"


@pytest.mark.parametrize("drafts", [1, 2], ids=["a chain", "a tree"])
def test_promises_count_as_far_as_they_come_true(drafts, monkeypatch):
    machine = Machine(monkeypatch, Sizer())
    machine.run(400, [Option("bold", 4.0, 2.0, (drafts - 1, 1))], lambda option: 1, lambda option: option.seconds)
    assert machine.share() < 0.1


def test_what_turns_out_slower_than_plain_steps_is_dropped(monkeypatch):
    """Whatever is promised: steps with drafts take ten times what they should."""
    machine = Machine(monkeypatch, Sizer())
    machine.run(400, [Option("small", 3.0, 1.0)], lambda option: 2, lambda option: 10.0)
    assert 0 < machine.share() <= 0.05


@pytest.mark.parametrize("price", [1.2, 2.0, 5.0, 8.0])
def test_trials_that_do_not_pay_take_a_small_share_of_the_time(price, monkeypatch):
    machine = Machine(monkeypatch, Sizer())
    machine.run(4000, [Option("small", 1.5, price)], lambda option: 1, lambda option: price)
    assert machine.share() > 0 and machine.now <= 1.05 * machine.tokens
    lost = (price - 1) * sum(tree is not None for tree in machine.drafted[400:])
    assert lost <= 0.03 * 3600 + (price - 1) * AGAIN


def test_chains_are_foreseen_by_depth():
    follows = Follows(4, 0.5)
    assert follows.tokens() == pytest.approx([0.0, 0.5, 0.75, 0.875, 0.9375])
    for _ in range(200):
        follows.learn(2, 3)  # the third is wrong
    none, first, second, _, fourth = follows.tokens()
    assert (none, first) == (0.0, pytest.approx(1.0, abs=0.1)) and second - first > 0.8 and fourth - second < 0.2
    before = follows.tokens()
    follows.learn(1, 1)  # nothing is seen behind the first
    assert follows.tokens()[2] - follows.tokens()[1] == pytest.approx(before[2] - before[1], abs=0.02)


@pytest.mark.parametrize(("cost", "shown"), [(FLAT, True), (STEEP, False)], ids=["rows are free", "rows are dear"])
def test_what_was_retrieved_is_shown_where_it_pays(cost, shown, monkeypatch):
    costing(monkeypatch, cost, call=10.0)
    monkeypatch.setattr("vistok.samplers.drafters.draft_model.step_cost", lambda model, batch: cost)
    prompt = torch.tensor([[1, 2, 3, 4, 5, 6, 7] * 4])
    stats = generate(tiny(), prompt, Rasd(DraftModel(tiny(seed=1), "auto")), max_new_tokens=8, do_sample=False).stats
    assert (int(stats.proposed.max()) > 0) is shown


def test_the_long_run_of_states_is_that_of_a_simulation():
    trees, accuracy = SparseTrees.best([[0.5, 0.2], [0.4, 0.2], [0.3, 0.1]], 8, 2), [[0.5, 0.2], [0.4, 0.2], [0.3, 0.1]]
    tokens, seconds = trees.long_run(accuracy, lambda rows: rows)
    generator, state, found, rows = torch.Generator().manual_seed(0), 3, 0, 0
    for _ in range(20_000):
        node = 0
        rows += int(trees.nodes[state] + trees.predictions[state])
        while True:
            children = [i for i, parent in enumerate(trees.parents[state].tolist()) if parent == node]
            draw, taken = float(torch.rand((), generator=generator)), None
            for child in children:
                chance = accuracy[int(trees.depth[state, child]) - 1][int(trees.rank[state, child])]
                if draw < chance:
                    taken = child
                    break
                draw -= chance
            found += 1
            if taken is None:
                break
            node = taken
        state = int(trees.looks[state, node])
    assert tokens == pytest.approx(found / 20_000, rel=0.02)
    assert seconds == pytest.approx(rows / 20_000, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        TokenRecycling,
        lambda word: ExtraRowDrafter(tiny_prompt_tokens(), word),
        lambda word: EagleHead(tiny_head(), word),
        lambda word: CloverHead(tiny_clover(), word),
        lambda word: DraftModel(tiny(), word),
    ],
)
def test_names_of_trees_are_refused(make):
    with pytest.raises(VistokError, match=r"'wide'.*auto"):
        make("wide")
