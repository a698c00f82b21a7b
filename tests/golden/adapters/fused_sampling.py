"""The sampling head: guided and filtered law, draw, speculative acceptance, residual draw."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.ops.logits import probabilities
from vistok.ops.sampling import residual_law, sample_tokens, verify_tokens

SYSTEM = "fused_sampling"


def sample(case: Case) -> None:
    inputs, config = case.inputs, case.config
    filters = {name: config[name] for name in ("temperature", "top_k", "top_p")}
    guided = {"uncond": inputs["logits_uncond"], "guidance": config["cfg_scale"], **filters}
    logits = inputs["logits_cond"]
    draft_probs = probabilities(inputs["draft_logits"], **filters)
    case.close(draft_probs, "draft_probs")
    token, probs = sample_tokens(logits, inputs["u_sample"], **guided)
    case.close(probs, "probs")
    case.equal(token, "sample")
    step = verify_tokens(logits, inputs["draft_token"], draft_probs, inputs["u_accept"], inputs["u_sample"], **guided)
    case.close(step.acceptance, "accept_prob")
    case.equal(step.accepted, "accepted")
    case.equal(step.token, "token")
    case.close(residual_law(step.probs, draft_probs), "residual")


ADAPTERS = {"sample": sample}
