"""Targets: the models that drafts are checked against."""
