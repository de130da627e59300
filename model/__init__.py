"""GPT-2: the model, its sizes, its FLOPs, and the way to and from Hugging Face's weights."""

from model.gpt2 import GPT2, MODELS, GPT2Config

__all__ = ["GPT2", "MODELS", "GPT2Config"]
