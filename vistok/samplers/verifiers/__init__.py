"""Verifiers: what is kept of a draft."""
