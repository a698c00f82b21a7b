"""Answers of multimodal models: questions, scorers, and accuracy against kept tokens."""
