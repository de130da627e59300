"""Text, tokenizers and token streams. Nothing here imports torch."""

from data.tokens import TokenSource, batches, load_tokens

__all__ = ["TokenSource", "batches", "load_tokens"]
