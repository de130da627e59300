"""The fastest a training step could be on a device, part by part: arithmetic at the measured matrix rate, bytes at the
measured copy rate, each part limited by the larger of its two, nothing overlapped.

It is a bound for this algorithm in 16-bit activations with fp32 master weights, every tensor read and written once, fused as
far as fusion goes. FLOPs are 2 per multiply-add; causal attention is counted half, with the scores computed once more in the
backward pass (7 products instead of 6). Bytes are counted in passes over a (tokens, C) activation.
"""

from typing import Any

from model import GPT2Config

# Passes over one (tokens, C) activation: reads and writes, forward + backward.
RESIDUAL_NORM_PASSES = 8  # read x and the branch, write the sum and the norm; read two gradients and x, write one
GELU_PASSES = 5  # read, write; read the input and the gradient, write
BIAS_GRADIENT_PASSES = 1  # read; per C columns of bias that no other kernel's pass can carry
EMBEDDING_PASSES = 8  # read a row, write x; read the gradient, add into two fp32 tables
LOGITS_PASSES = 2  # read the logits, write their gradient, over (tokens, V)
# Per parameter: AdamW reads and writes p, m and v in fp32 (24), the gradient is read for the norm and for the update (8), and
# the 16-bit copy is written and its gradient cast (6).
OPTIMIZER_BYTES = 38


def roofline(
    config: GPT2Config, *, num_parameters: int, tokens: int, seq_len: int, peaks: dict[str, Any]
) -> dict[str, Any] | None:
    """The bound for one optimizer step.

    Args:
        config: the model's shape.
        num_parameters: of the model.
        tokens: per step and process.
        seq_len: T.
        peaks: measured, ``{"tflops": {dtype: …}, "bandwidth_gbps": …}``.

    Returns:
        ``dtype`` (the fastest unquantised one), ``components_ms`` by part, ``step_ms`` and ``tokens_per_second``; None where
        the peaks are not known.
    """
    rates = {d: r for d, r in peaks.get("tflops", {}).items() if d in ("fp32", "tf32", "bf16", "fp16") and r}
    bandwidth = peaks.get("bandwidth_gbps")
    if not rates or not bandwidth:
        return None
    dtype = max(rates, key=lambda d: rates[d])
    width = 4 if dtype in ("fp32", "tf32") else 2
    L, C, V = config.n_layer, config.n_embd, config.vocab_size
    activation = tokens * C * width

    def arithmetic(flops: float) -> float:
        return flops / (rates[dtype] * 1e12) * 1e3

    def memory(num_bytes: float) -> float:
        return num_bytes / (bandwidth * 1e9) * 1e3

    components_ms = {
        "block GEMMs": arithmetic(6 * 12 * L * C * C * tokens),
        "head GEMMs": arithmetic(6 * V * C * tokens),
        "attention": arithmetic(7 * L * C * seq_len * tokens),
        "residual + LayerNorm": memory(RESIDUAL_NORM_PASSES * 2 * L * activation),
        "GELU": memory(GELU_PASSES * 4 * L * activation),
        "bias gradients": memory(BIAS_GRADIENT_PASSES * 4 * L * activation),
        "cross-entropy": memory(LOGITS_PASSES * tokens * V * width),
        "optimizer": memory(OPTIMIZER_BYTES * num_parameters),
        "embedding": memory(EMBEDDING_PASSES * activation),
    }
    step_ms = sum(components_ms.values())
    return {
        "dtype": dtype,
        "components_ms": components_ms,
        "step_ms": step_ms,
        "tokens_per_second": tokens / step_ms * 1e3,
    }
