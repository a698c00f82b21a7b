"""TokenUnify: the input and the target of next-token prediction."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.models.vision.tokenunify import from_patches, keep_first, patches

SYSTEM = "tokenunify"


def prefix_mask(case: Case) -> None:
    c = case.config
    volume, size = case.inputs["volume"], tuple(c["patch_size"])
    tokens = patches(volume, size)
    assert len(tokens) == c["num_patches"]
    fill = case.inputs.get("noise", case.inputs.get("fill"))
    masked, target = keep_first(tokens, c["k"], None if fill is None else patches(fill, size))
    case.close(from_patches(masked, volume.shape, size), "masked")
    case.close(target.view(size), "next_token")


ADAPTERS = {"prefix_mask": prefix_mask}
