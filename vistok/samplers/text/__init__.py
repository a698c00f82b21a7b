"""The former home of text speculation: its names live in ``vistok.samplers`` now, and still load from here."""

from __future__ import annotations

import warnings

from vistok import samplers

warnings.warn("vistok.samplers.text is vistok.samplers now: import the same names from there.", FutureWarning, 2)
__getattr__ = samplers.__getattr__
