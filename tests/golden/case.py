"""A golden case: the JSON that describes it, its tensors, and the comparison at the tolerance it states."""

from __future__ import annotations

import json
from collections import UserDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

CENSUS = "golden"  # the property under which a test records the system and kind of its case


class Outputs(UserDict[str, Tensor]):
    """Expected tensors by name; remembers which were never looked at, so that an adapter cannot skip one."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.unused = set(tensors)

    def __getitem__(self, name: str) -> Tensor:
        self.unused.discard(name)
        return super().__getitem__(name)


class Case:
    """One golden case, read from ``<case>.json`` and, where it exists, ``<case>.safetensors`` beside it.

    Attributes:
        meta: the whole JSON.
        system, kind, config: the entries of the JSON that adapters go by.
        tensors: every tensor of the safetensors file under its full name.
        weights, inputs, outputs: tensors named ``weights.*``, ``in.*``, ``out.*``, without that prefix.
        atol, rtol: tolerances of the case; 0 where it states none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.system: str = self.meta["system"]
        self.kind: str = self.meta["kind"]
        self.config: dict[str, Any] = self.meta.get("config", {})
        self.atol = float(self.meta.get("atol", 0.0))
        self.rtol = float(self.meta.get("rtol", 0.0))

    @property
    def id(self) -> str:
        return f"{self.system}/{self.path.stem}"

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        file = self.path.with_suffix(".safetensors")
        return load_file(file) if file.exists() else {}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return self._under("weights.")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self._under("in.")

    @cached_property
    def outputs(self) -> Outputs:
        return Outputs(self._under("out."))

    def close(self, actual: Any, name: str) -> None:
        """Assert that ``actual`` is output ``name`` within atol + rtol * |expected|; integers are equal."""
        expected = self.outputs[name]
        exact = not expected.is_floating_point()
        compare(actual, expected, name, 0.0 if exact else self.atol, 0.0 if exact else self.rtol)

    def equal(self, actual: Any, name: str) -> None:
        """Assert that ``actual`` has exactly the values of the output ``name``."""
        compare(actual, self.outputs[name], name, 0.0, 0.0)

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def compare(actual: Any, expected: Tensor, name: str, atol: float, rtol: float) -> None:
    """Assert same shape and, elementwise, |actual - expected| <= atol + rtol * |expected| (NaN equals NaN).

    Args:
        actual: tensor, array or number; its dtype may differ, its values count.
        expected: the golden tensor.
        name: what the failure message calls it.
        atol, rtol: tolerances; both 0 means equal.
    """
    actual = torch.as_tensor(np.asarray(actual) if not isinstance(actual, Tensor) else actual).detach().cpu()
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.is_floating_point() or expected.is_floating_point():
        a, e = actual.double(), expected.double()
        same = (a == e) | (a.isnan() & e.isnan())
        # An infinite expectation would make the tolerance infinite, so only finite values may differ at all.
        near = a.isfinite() & e.isfinite() & ((a - e).abs() <= atol + rtol * e.abs())
        wrong = ~(same | near)
    else:
        a, e = actual.long(), expected.long()
        wrong = a != e
    if wrong.any():
        raise AssertionError(_difference(a, e, wrong, name, atol, rtol))


def _difference(a: Tensor, e: Tensor, wrong: Tensor, name: str, atol: float, rtol: float) -> str:
    error = torch.where(wrong, (a - e).abs().double().nan_to_num(nan=torch.inf), -1.0)
    at = np.unravel_index(int(error.argmax()), error.shape) if error.ndim else ()
    index = [int(i) for i in at]
    return (
        f"{name} {list(e.shape)}: {int(wrong.sum())} of {wrong.numel()} values differ beyond "
        f"atol={atol:g} rtol={rtol:g}; worst at {index}: got {a[at].item():.9g}, expected {e[at].item():.9g} "
        f"(difference {error[at].item():.3g})"
    )
