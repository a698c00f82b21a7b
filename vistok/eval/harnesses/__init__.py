"""Plugins for evaluation harnesses of others."""
