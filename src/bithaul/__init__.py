"""bithaul: small ternary language models, trained on computers people already own."""

__version__ = "0.1.0"
