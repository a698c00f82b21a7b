"""Triton kernels, each a twin of a torch reference with the same signature in the module of the same name above.

Importing them needs no GPU; launching them needs CUDA tensors, or ``TRITON_INTERPRET=1`` set before the import.
Rules that keep them testable under the interpreter: no waiting on another program, no autotuning (block sizes come
from plain functions), vector masks on vector loads.
"""
