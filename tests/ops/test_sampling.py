"""The sampling head: draws, and speculative steps whose output follows the target law."""

import torch

from vistok.ops import combine_guidance, draw, probabilities
from vistok.ops.sampling import residual_law, sample_tokens, verify_tokens

FILTERS = {"temperature": 0.9, "top_k": 6, "top_p": 0.9}


def test_sample_is_guidance_filters_and_draw():
    cond, uncond, uniform = torch.randn(5, 20), torch.randn(5, 20), torch.rand(5)
    token, probs = sample_tokens(cond, uniform, uncond=uncond, guidance=3.0, **FILTERS)
    expected = probabilities(combine_guidance(cond, uncond, 3.0), **FILTERS)
    assert torch.equal(probs, expected) and torch.equal(token, draw(expected, uniform))
    assert torch.equal(sample_tokens(cond, uniform, **FILTERS)[1], probabilities(cond, **FILTERS))


def emitted_law(logits, draft_logits, rule, trials=60_000):
    """Shares of the tokens that a speculative step emits."""
    generator = torch.Generator().manual_seed(0)
    draft_law = probabilities(draft_logits, **FILTERS)
    uniforms = torch.rand(3, trials, generator=generator)
    draft = draw(draft_law.expand(trials, -1), uniforms[0])
    step = rule(logits.expand(trials, -1), draft, draft_law.expand(trials, -1), uniforms[1], uniforms[2])
    return torch.bincount(step.token, minlength=len(logits)) / trials, step


def test_speculative_step_follows_the_target_law():
    generator = torch.Generator().manual_seed(1)
    logits, draft_logits = torch.randn(2, 12, generator=generator)
    target = probabilities(logits, **FILTERS)
    shares, step = emitted_law(logits, draft_logits, lambda *a: verify_tokens(*a, **FILTERS))
    assert (shares - target).abs().max() < 0.011  # five standard deviations
    overlap = torch.minimum(target, probabilities(draft_logits, **FILTERS)).sum()
    assert abs(step.accepted.float().mean() - overlap) < 0.011
    # The check has the power to see a wrong rule: replacing rejected drafts from p itself.
    wrong, _ = emitted_law(
        logits,
        draft_logits,
        lambda rows, draft, law, u, w: verify_tokens(rows, draft, torch.ones_like(law), u, w, **FILTERS),
    )
    assert (wrong - target).abs().max() > 0.03


def test_edges_of_acceptance():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]]).expand(3, 3)
    law = probabilities(logits)[0]
    proposal = torch.stack([law, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])])
    draft = torch.tensor([1, 2, 0])
    almost_one = torch.full((3,), 1 - 2.0**-24)
    step = verify_tokens(logits, draft, proposal, torch.tensor([almost_one[0], 0.0, almost_one[2]]), almost_one)
    assert step.accepted.tolist() == [True, False, False]  # p = q; p = 0 even at u = 0; p < q
    assert step.token.tolist() == [1, 1, 1]
    torch.testing.assert_close(step.acceptance, torch.tensor([1.0, 0.0, float(law[0])]))


def test_residual_of_equal_laws_is_the_target_law():
    law = torch.tensor([[0.25, 0.75]])
    assert torch.equal(residual_law(law, law), law)
    torch.testing.assert_close(residual_law(law, torch.tensor([[0.75, 0.25]])), torch.tensor([[0.0, 1.0]]))
