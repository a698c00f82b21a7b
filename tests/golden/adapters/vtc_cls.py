"""VTC-CLS: scores, kept patches and their features."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.interface import top_tokens
from vistok.projectors.methods.vtc_cls import ensemble_layers, vtc_cls_scores

SYSTEM = "vtc_cls"


def select(case: Case) -> None:
    attentions = case.inputs["attentions"]  # [L, B, H, N+1, N+1]
    hidden = case.inputs["hidden_states_selected"][:, 1:]
    layers = ensemble_layers(len(attentions), case.config["start_layer"])
    scores = vtc_cls_scores(attentions[list(layers)][:, :, :, 0, 1:])
    counts = [case.config["keep"]] * len(scores)
    kept = torch.stack(top_tokens(scores, counts, torch.ones_like(scores, dtype=torch.bool)))
    single = case.outputs["scores"].ndim == 1
    case.close(scores[0] if single else scores, "scores")
    case.close(kept[0] if single else kept, "indices")
    case.close(torch.stack([row[index] for row, index in zip(hidden, kept, strict=True)]), "features")


ADAPTERS = {"select": select}
