"""Draft heads: small networks that predict what a target will say."""
