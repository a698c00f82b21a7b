"""How far each acceptance rule's tokens are from the target's law, on the toy heads of the tests.

Run ``python -m tests.samplers.continuous.laws`` for the table of docs/continuous.md.
"""

from __future__ import annotations

import torch

from tests.samplers.continuous.test_acceptance import LIMIT, PAIRS, N, aligned, distance, pair, speculate
from vistok.samplers.continuous.acceptance import derived_log_ratio, reference_log_ratio, reference_resample


def by_last_steps(name: str, rule) -> tuple[float, float]:
    """Distance to the target and share of accepted drafts, by a ratio of last steps and the published residual."""
    draft, target = pair(name)
    path, own, q, p = aligned(draft, target)
    generator = torch.Generator().manual_seed(3)
    accepted = torch.rand(N, generator=generator).log() < rule(q, p, path.value)
    values, _, _ = reference_resample(
        q,
        p,
        ~accepted,
        own.value,
        lambda rounds: (
            torch.randn(len(rounds), N, 1, generator=generator),
            torch.rand(len(rounds), N, generator=generator),
        ),
    )
    drawn = torch.where(accepted[:, None], path.value, values)[:, 0]
    return distance(drawn, target), float(accepted.double().mean())


def main() -> None:
    print(f"n = {N}, the test rejects above {LIMIT:.4f}")
    for name in PAIRS:
        values, rate = speculate(name)
        print(f"{name}: exact D {distance(values, pair(name)[1]):.4f} accepted {rate:.3f}")
        print(f"{name}: drafts alone D {distance(aligned(*pair(name))[0].value[:, 0], pair(name)[1]):.4f}")
        rules = {
            "derived sign": derived_log_ratio,
            "reference, 1": lambda q, p, x: reference_log_ratio(q, p, x, 1.0),
            "reference, 42": lambda q, p, x: reference_log_ratio(q, p, x, 42.0),
        }
        for title, rule in rules.items():
            far, rate = by_last_steps(name, rule)
            print(f"{name}: {title} D {far:.4f} accepted {rate:.3f}", flush=True)


if __name__ == "__main__":
    main()
