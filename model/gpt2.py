"""GPT-2 on one page.

The model is written the plain way, so that it reads like the paper and serves as the reference for every faster
version. Faster versions of a part are chosen by a field of `GPT2Config` (`CHOSEN_BY_RUNGS` lists them) that a rung of
the ladder sets; nothing here knows about precision, compilation or devices.

Legend for shape comments:

    B  micro-batch      T  sequence length      C  n_embd (channels)
    H  n_head           D  head size, C / H     V  vocab_size      P  padded_vocab_size (P >= V)

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); parameter names are those of
OpenAI's release (https://github.com/openai/gpt-2).
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import fp8


def written_out_attention(qkv: Tensor, dropout: float) -> Tensor:
    """Causal attention by its formula, the (T, T) matrix held in memory.

    Args:
        qkv: (B, T, 3, H, D) queries, keys and values, as one linear layer makes them.
        dropout: probability with which a weight is zeroed.

    Returns:
        (B, T, H, D), the dtype of ``qkv``.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) * (1.0 / math.sqrt(D))  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return (F.dropout(weights, dropout).to(v.dtype) @ v).transpose(1, 2)


def sdpa_attention(qkv: Tensor, dropout: float) -> Tensor:
    """The same function through `scaled_dot_product_attention`; which kernel runs is the rung's choice."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).transpose(1, 2)


def triton_attention(qkv: Tensor, dropout: float) -> Tensor:
    """The same function with our kernel, which reads the packed tensor where it stands and has no dropout."""
    from kernels.flash_attention import flash_attention  # needs Triton, which not every system has

    if dropout:
        raise ValueError(f"dropout is {dropout}, which attention 'triton' does not have; set it to 0 or choose 'sdpa'")
    return flash_attention(qkv)


def flex_attention(qkv: Tensor, dropout: float) -> Tensor:
    """The same function as a kernel of the compiler's, without dropout; SDPA's where nothing is compiled, as in sampling."""
    if dropout:
        raise ValueError(f"dropout is {dropout}, which attention 'flex' does not have; set it to 0 or choose 'sdpa'")
    if not torch.compiler.is_compiling():
        return sdpa_attention(qkv, dropout)
    from model.flex import causal_attention  # slow to import, and for few

    return causal_attention(qkv)


def written_out_mlp(x: Tensor, c_fc: nn.Linear, c_proj: nn.Linear) -> Tensor:
    """Two linear layers with a GELU between them.

    Args:
        x: (B, T, C), normed.
        c_fc: C -> 4C.
        c_proj: 4C -> C.

    Returns:
        (B, T, C).
    """
    return c_proj(F.gelu(c_fc(x), approximate="tanh"))


def bias_gelu_mlp(x: Tensor, c_fc: nn.Linear, c_proj: nn.Linear) -> Tensor:
    """The same function, the first bias added by our GELU kernel."""
    from kernels.bias_gelu import bias_gelu

    return c_proj(bias_gelu(F.linear(x, c_fc.weight), c_fc.bias))


def triton_mlp(x: Tensor, c_fc: nn.Linear, c_proj: nn.Linear) -> Tensor:
    """The same function, GELU and its derivative inside our matrix products."""
    from kernels.linear_gelu import mlp

    return mlp(x, c_fc.weight, c_fc.bias, c_proj.weight, c_proj.bias)


def fp8_mlp(x: Tensor, c_fc: nn.Linear, c_proj: nn.Linear, *, scales: fp8.Scales) -> Tensor:
    """The same function, both products in fp8 forward."""
    h = F.gelu(fp8.linear(x, c_fc.weight, c_fc.bias, scales=scales), approximate="tanh")
    return fp8.linear(h, c_proj.weight, c_proj.bias, scales=scales)


def written_out_add_norm(x: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Adds a branch to the residual stream, and norms the sum for the next one.

    Args:
        x: (B, T, C), the stream.
        branch: (B, T, C), or None: before the first block there is nothing to add.
        norm: the norm at the beginning of the next branch.

    Returns:
        (B, T, C) the stream, and (B, T, C) its norm.
    """
    if branch is not None:
        x = x + branch
    return x, norm(x)


def triton_add_norm(x: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The same function with our kernel, where there is something to add."""
    from kernels.layer_norm import residual_layer_norm

    if branch is None:
        return x, norm(x)
    return residual_layer_norm(x, branch, norm.weight, norm.bias, eps=norm.eps)


def written_out_loss(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, scales: fp8.Scales | None) -> Tensor:
    """The output head and the cross-entropy after it.

    Args:
        x: (B, T, C) hidden states.
        weight: (P, C), the embedding table.
        targets: (B, T) int64; -100 marks a position that does not count.
        vocab_size: V; columns past it never reach the softmax.
        scales: for a head in fp8; None: in the type of ``x``.

    Returns:
        Mean in nats over the positions that count, float32.
    """
    logits = F.linear(x, weight) if scales is None else fp8.linear(x, weight, scales=scales)  # (B, T, P)
    logits = logits[..., :vocab_size]
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def triton_loss(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, scales: fp8.Scales | None) -> Tensor:
    """The same function with our kernel, the (B·T, P) logits overwritten by their gradient."""
    from kernels.linear_cross_entropy import linear_cross_entropy  # needs Triton, which not every system has

    return linear_cross_entropy(x, weight, targets, vocab_size=vocab_size, chunk_rows=targets.numel(), scales=scales)


def chunked_loss(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, scales: fp8.Scales | None) -> Tensor:
    """The same function again, as many rows of logits at a time as suit the device's memory."""
    from kernels.linear_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(x, weight, targets, vocab_size=vocab_size, scales=scales)


ATTENTION = {
    "written_out": written_out_attention,
    "sdpa": sdpa_attention,
    "flex": flex_attention,
    "triton": triton_attention,
}
MLPS = {
    "written_out": written_out_mlp,
    "bias_gelu": bias_gelu_mlp,
    "triton": triton_mlp,
    "fp8": partial(fp8_mlp, scales=fp8.DYNAMIC),
    "fp8_static": partial(fp8_mlp, scales=fp8.STATIC),
}
ADD_NORM = {"written_out": written_out_add_norm, "triton": triton_add_norm}
HEADS = {"written_out": None, "fp8": fp8.DYNAMIC, "fp8_static": fp8.STATIC}  # how any loss multiplies its logits
LOSS = {"written_out": written_out_loss, "triton": triton_loss, "chunked": chunked_loss}

# Fields of `GPT2Config` that say how to compute and not what: two models that differ in them alone are the same model.
CHOSEN_BY_RUNGS = ("attention", "mlp", "add_norm", "head", "loss", "recompute", "padded_vocab_size")


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Shape of one GPT-2.

    Args:
        n_layer: number of transformer blocks.
        n_head: attention heads per block; must divide ``n_embd``.
        n_embd: channels of the residual stream.
        n_positions: longest sequence the position table holds.
        vocab_size: number of token ids, V.
        padded_vocab_size: rows of the embedding table, P >= V; ``None`` means V. Rows past V take no part in the loss.
        dropout: probability, applied after embedding, attention weights and both projections.
        attention: ``"written_out"`` (the textbook formula), ``"sdpa"`` (PyTorch's fused kernel), ``"flex"`` (the compiler's)
            or ``"triton"`` (ours).
        mlp: ``"written_out"``, ``"bias_gelu"`` (both in our kernel), ``"triton"`` (GELU inside our products), ``"fp8"``
            (products in fp8 forward, scales from the tensors) or ``"fp8_static"`` (fixed scales).
        add_norm: ``"written_out"`` or ``"triton"``: residual addition and the norm after it in one kernel.
        head: ``"written_out"``, ``"fp8"`` or ``"fp8_static"``: how training multiplies by the table, for any loss.
        loss: ``"written_out"``, ``"triton"`` (our kernel) or ``"chunked"`` (our kernel, never all logits at once).
        recompute: between the passes keep only what enters each block, and compute the rest again.
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257
    padded_vocab_size: int | None = None
    dropout: float = 0.0
    attention: str = "written_out"
    mlp: str = "written_out"
    add_norm: str = "written_out"
    head: str = "written_out"
    loss: str = "written_out"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, which n_head={self.n_head} does not divide; change one of them")
        if self.padded_vocab_size is not None and self.padded_vocab_size < self.vocab_size:
            raise ValueError(
                f"padded_vocab_size is {self.padded_vocab_size}, below vocab_size={self.vocab_size}; raise it"
            )
        tables = {"attention": ATTENTION, "mlp": MLPS, "add_norm": ADD_NORM, "head": HEADS, "loss": LOSS}
        for name, choices in tables.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")

    @property
    def rows(self) -> int:
        """Rows of the embedding table: the padded vocabulary where there is one, else the vocabulary."""
        return self.padded_vocab_size or self.vocab_size

    def resized(self, *, vocab_size: int, seq_len: int) -> "GPT2Config":
        """The same shape for another vocabulary and sequence: positions past it would never be trained."""
        return replace(self, vocab_size=vocab_size, n_positions=seq_len)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.config.n_head, -1)  # (B, T, 3, H, D)
        dropout = self.config.dropout if self.training else 0.0
        y = ATTENTION[self.config.attention](qkv, dropout)  # (B, T, H, D)
        return F.dropout(self.c_proj(y.reshape(B, T, C)), dropout)


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = MLPS[self.config.mlp](x, self.c_fc, self.c_proj)
        return F.dropout(x, self.config.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream, and what the MLP adds to it: the next norm does that, so that one kernel can do both."""
        add_norm = ADD_NORM[self.config.add_norm]
        x, y = add_norm(x, branch, self.ln_1)
        x, y = add_norm(x, self.attn(y), self.ln_2)
        return x, self.mlp(y)


class GPT2(nn.Module):
    """GPT-2 with the embedding table tied to the output head.

    Args:
        config: the shape; weights are drawn from torch's global generator (seed it to repeat them). The draw does not
            depend on ``padded_vocab_size``: a padded model starts from the same weights as an unpadded one.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        # Made empty: nn.Embedding's own draw would advance the generator by an amount that depends on the padding.
        self.wte = nn.Embedding.from_pretrained(torch.empty(config.rows, config.n_embd), freeze=False)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), zero biases, residual projections scaled by 1/sqrt(2 * n_layer)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, residual_std if name.endswith("c_proj") else 0.02)
                module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.wpe.weight.normal_(0.0, 0.02)
        self.wte.weight.zero_()
        self.wte.weight[: self.config.vocab_size].normal_(0.0, 0.02)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits, or the training loss when targets are given.

        Training asks for the loss alone so that no faster version is forced to keep the (B, T, V) logits.

        Args:
            idx: (B, T) int64 token ids below ``vocab_size``.
            targets: (B, T) int64 next tokens; -100 marks a position that does not count.

        Returns:
            (B, T, V) logits, or without a batch shape the mean cross-entropy in nats, float32.

        Raises:
            ValueError: the sequence is longer than ``n_positions``.
        """
        B, T = idx.shape
        if T > self.config.n_positions:
            raise ValueError(f"sequence length is {T}, above n_positions={self.config.n_positions}; shorten the input")
        x = self.wte(idx) + self.wpe.weight[:T]  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        branch = None
        for block in self.h:
            if self.config.recompute and self.training:
                x, branch = checkpoint(block, x, branch, use_reentrant=False)
            else:
                x, branch = block(x, branch)
        _, x = ADD_NORM[self.config.add_norm](x, branch, self.ln_f)
        if targets is None:
            return F.linear(x, self.wte.weight)[..., : self.config.vocab_size]  # without the padding columns
        loss, scales = LOSS[self.config.loss], HEADS[self.config.head]
        return loss(x, self.wte.weight, targets, self.config.vocab_size, scales)

    def num_parameters(self, *, positions: bool = True) -> int:
        """Trained numbers without vocabulary padding; ``positions=False`` leaves out wpe (the N of 6N)."""
        padding = (self.config.rows - self.config.vocab_size) * self.config.n_embd
        total = sum(p.numel() for p in self.parameters()) - padding
        return total if positions else total - self.wpe.weight.numel()
