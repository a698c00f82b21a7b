"""How far each acceptance rule's tokens are from the target's law, on the toy heads of the tests.

Run ``python -m tests.samplers.continuous.laws`` for the table of docs/continuous.md.
"""

from __future__ import annotations

from tests.samplers.continuous.test_acceptance import LIMIT, PAIRS, N, aligned, by_last_steps, distance, pair, speculate
from vistok.samplers.continuous.acceptance import derived_log_ratio, reference_log_ratio


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
