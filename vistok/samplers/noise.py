"""The random numbers of a run, addressed by sample, token position and purpose (see ``vistok.ops.noise``)."""

from __future__ import annotations

from torch import Tensor

from vistok.ops.noise import absorb, as_uniform, counter_bits

PURPOSES = 6
DRAW, ACCEPT, RESIDUAL, DRAFT, SAMPLE, FRESH = range(PURPOSES)


class Noise:
    """Uniforms for a batch of samples.

    Args:
        seed: of the run.
        samples: number of each sample in the run, int64 [B]: sample 7 gets the same numbers in any batch.
    """

    def __init__(self, seed: int, samples: Tensor):
        self.seed = seed
        self.samples = samples
        self._state = counter_bits(seed, samples)

    def uniform(self, positions: Tensor, purpose: int | Tensor, *keys: int | Tensor) -> Tensor:
        """Uniforms in (0, 1), float64.

        Args:
            positions: token positions, [B, ...]; the first axis runs over the samples.
            purpose: DRAW for a token drawn from the target, ACCEPT and RESIDUAL for the test of a draft and its
                replacement, DRAFT and SAMPLE for drafts, FRESH for drafts that are redrawn from the target's law.
            keys: further addresses, broadcast against ``positions``.

        Shape:
            the broadcast shape of positions and keys.
        """
        state = self._state.view(-1, *[1] * (positions.ndim - 1))
        return as_uniform(absorb(state, positions, purpose, *keys))
