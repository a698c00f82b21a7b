"""Putting a compressor on a transformers model: pictures, prompts, layers."""
