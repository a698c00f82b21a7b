"""Ways to decode side by side: trials, figures, tables."""
