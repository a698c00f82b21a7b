"""The protocol of constraints: a grammar, an automaton, an analysis of the text so far."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Constraint(Protocol):
    """Which tokens may follow. States are never changed, so that texts may branch from any of them."""

    def start(self) -> Any:
        """Returns the state behind the prompt."""

    def allowed(self, state: Any) -> Tensor:
        """Returns which tokens may come next, bool [V], the end token among them; at least one."""

    def advance(self, state: Any, token: int) -> Any:
        """Returns the state behind an allowed token."""
