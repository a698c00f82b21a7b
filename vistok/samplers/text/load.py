"""The former home of ``load_causal_lm``, which is in ``vistok.zoo.transformers`` now."""

from vistok.zoo.transformers import load_causal_lm

__all__ = ["load_causal_lm"]
