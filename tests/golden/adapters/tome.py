"""ToMe: one matching step with a size-weighted mean."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.projectors.methods.tome import merge_tokens

SYSTEM = "tome"


def merge(case: Case) -> None:
    i = case.inputs
    merged = merge_tokens(i["x"], i["size"], i["metric"], case.config["r"], case.config["class_token"])
    case.close(merged.x, "x")
    case.close(merged.size, "size")


ADAPTERS = {"merge": merge}
