"""lm-eval's ``hf`` model decoding with a drafter: ``python -m vistok.eval.harnesses.lm --model vistok_hf ...``.

lm-eval has no hook for models of others, so this module registers one and hands over to its command line. Loss-based
tasks run as they are; what ``generate_until`` asks for is drafted and verified, and so is what lm-eval would get.
"""

from __future__ import annotations

import sys
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from vistok.errors import VistokError
from vistok.samplers import accelerate
from vistok.samplers.writing import check_draft, drafter_of
from vistok.zoo.registry import is_embedded, resolve


class VistokHF(HFLM):
    """A causal LM of transformers with a drafter, by model arguments; the rest is lm-eval's.

    Args:
        pretrained: folder or hub id, or an embedded model such as ``text-mini``.
        drafter: as ``vistok write --drafter`` has it, "none" for plain decoding.
        draft: the small model, or the EAGLE head.
        arguments: lm-eval's own.

    Raises:
        VistokError: an unknown drafter, one that does not fit or reads no draft that is given, or a model that draws no
            text.
    """

    def __init__(self, pretrained: str, drafter: str = "recycling", draft: str | None = None, **arguments: Any) -> None:
        check_draft(drafter, draft)
        source = str(resolve(pretrained)) if is_embedded(pretrained) else pretrained
        super().__init__(pretrained=source, **arguments)
        if drafter != "none":
            kind = str(self.model.dtype).removeprefix("torch.")
            speculation, _ = drafter_of(drafter, self.model, self.tokenizer, draft, str(self.device), kind, None)
            self.acceleration = accelerate(self.model, speculation)


def main() -> None:
    """lm-eval's command line; what vistok refuses ends it with a sentence."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except VistokError as error:
        sys.exit(f"vistok: {error}")


if __name__ == "__main__":
    from vistok.eval.harnesses import lm  # where the class is registered, under its own module's name

    lm.main()
else:
    register_model("vistok_hf")(VistokHF)
