"""Splits of the embedded world: which seeds are trained on, and which are kept for measuring.

A world is unlimited and its seed names it, so a split is a seed. Recipes choose theirs from ``TRAINING_SEEDS``; each
measurement that must not see what another has looked at has a world of its own beyond them.
"""

from __future__ import annotations

from vistok.data.scenes.world import Scenes, sample_scenes
from vistok.errors import VistokError

TRAINING_SEEDS = range(1_000_000)  # of worlds that recipes may train on

HELD_OUT = 1_000_003
"""The world of held-out metrics, reconstruction and answers: no recipe trains on it."""

GENEVAL_CEILING = 1_000_004
"""The world whose reconstructions set the ceiling of GenEval scores; no other measurement looks at it."""

REFERENCE = 2_000_003
"""The world whose pictures are the reference set of Frechet distances between samplers."""

PROBES = 1_000_033
"""The world that linear probes learn on before they are measured on ``HELD_OUT``."""

HELD_OUT_SPLITS = {
    "HELD_OUT": HELD_OUT,
    "GENEVAL_CEILING": GENEVAL_CEILING,
    "REFERENCE": REFERENCE,
    "PROBES": PROBES,
}

CHUNK = 512  # scenes that are composed at a time; about a fifth of them have one object


def check_training_seed(seed: int) -> int:
    """Returns the seed of a world that may be trained on.

    Raises:
        VistokError: the seed is not a whole number among ``TRAINING_SEEDS``.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed not in TRAINING_SEEDS:
        raise VistokError(
            f"data.seed is {seed!r}, but recipes train on worlds 0 to {TRAINING_SEEDS[-1]} (whole numbers); those "
            "beyond are kept for measuring."
        )
    return seed


def single_object_scenes(seed: int, chunk: int) -> Scenes:
    """Returns those scenes of one chunk of ``CHUNK`` of a world that have exactly one object.

    Args:
        seed: which world.
        chunk: number of the chunk, from 0.
    """
    scenes = sample_scenes(CHUNK, seed, chunk * CHUNK)
    return scenes[scenes.present.sum(1) == 1]
