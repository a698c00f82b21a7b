"""How well tokenizers give pictures back."""
