"""The models: GPT-2 and the character bigram, their sizes, their FLOPs, and the way to and from Hugging Face's weights."""

from model.bigram import Bigram, BigramConfig
from model.gpt2 import GPT2, GPT2Config
from model.models import MODELS, ModelConfig, create

__all__ = ["GPT2", "MODELS", "Bigram", "BigramConfig", "GPT2Config", "ModelConfig", "create"]
