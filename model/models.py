"""Every model by name, and the way from a configuration to a module."""

from torch import nn

from model.bigram import Bigram, BigramConfig
from model.gpt2 import GPT2, GPT2Config

ModelConfig = GPT2Config | BigramConfig

# The four released sizes under their names on Hugging Face's hub, small ones for a CPU and for small corpora; pico is for trying
# things out in seconds.
MODELS: dict[str, ModelConfig] = {
    "char-bigram": BigramConfig(),
    "char-transformer": GPT2Config(n_layer=6, n_head=6, n_embd=384, n_positions=256, vocab_size=65, dropout=0.2),
    "stories": GPT2Config(n_layer=2, n_head=4, n_embd=768, vocab_size=8192),
    "pico": GPT2Config(n_layer=2, n_head=2, n_embd=64),
    "nano": GPT2Config(n_layer=4, n_head=4, n_embd=256),
    "mini": GPT2Config(n_layer=6, n_head=6, n_embd=384),
    "gpt2": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}


def create(config: ModelConfig) -> nn.Module:
    """The module of that shape, weights drawn from torch's global generator; its ``forward(idx, targets)`` is the loss."""
    return Bigram(config) if isinstance(config, BigramConfig) else GPT2(config)
