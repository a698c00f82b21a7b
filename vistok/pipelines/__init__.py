"""Prompt in, images out: a generator, its tokenizer and its text encoder behind one call.

``resolve`` finds the generator that a name stands for and ``load`` puts its parts together; ``generation`` has the
``Pipeline`` and its call. What the generator is told is ``conditioning``'s, what becomes of its tokens ``decoding``'s.
"""

from vistok.pipelines.generation import GUIDANCE, Pipeline, StepCallback
from vistok.pipelines.interface import Output, Sample, expand
from vistok.pipelines.load import pipeline
from vistok.pipelines.resolve import DEFAULT_MODEL

__all__ = ["DEFAULT_MODEL", "GUIDANCE", "Output", "Pipeline", "Sample", "StepCallback", "expand", "pipeline"]
