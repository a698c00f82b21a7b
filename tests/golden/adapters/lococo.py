"""LoCoCo: a cache mixed into a fixed number of slots, and the same cache with all but heavy hitters dropped."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.context.lococo import HeavyHitters, MemorySaver, Mixing

SYSTEM = "lococo"


def mix(case: Case) -> None:
    config = case.config
    mixing = Mixing(
        config["mem_size"],
        config["hh_keep_rate"],
        config["local_len"],
        config["n_convlayer"],
        config["kernel_size"],
        config["expand"],
        config["hidden_act"],
        config["normalizer_init"],
    )
    saver = MemorySaver(mixing, config["head_dim"])
    saver.load_state_dict(case.weights)
    rows = (case.inputs["k"], case.inputs["v"], case.inputs["hh_scores"])
    with torch.no_grad():
        k, v = saver(*rows)
    case.close(k, "k")
    case.close(v, "v")
    k, v = HeavyHitters(config["mem_size"], config["local_len"]).compress(0, *rows)
    case.close(k, "hh_drop_k")
    case.close(v, "hh_drop_v")


ADAPTERS = {"mix": mix}
