"""When codes that fell out of use are given new places."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RevivalData:
    """Entries of ``data``.

    Attributes:
        revive_every: steps between revivals of unused codes; none if 0.
        revive_until: the step from which on they stay as they are.
    """

    revive_every: int = 0
    revive_until: int = 0

    def revives(self, step: int) -> bool:
        """Returns whether codes are revived behind this step."""
        return self.revive_every > 0 and step % self.revive_every == 0 and step < self.revive_until
