"""Drafters: what proposes token trees; with each, the sampler that it makes."""
