"""Made-up profiles: where the time goes is put in, so what is said of it can be checked."""

import random
from typing import Any

from results import parts
from results.profiles import Kernel, Profile
from results.schema import SCHEMA_VERSION
from tests.factories import DEVICES, make_trial

# A step of GPT-2 124M, micro-batch 64, on an H100: milliseconds that a part needs at least, and takes here.
BOUNDS = {
    parts.BLOCK: 41.9, parts.HEAD: 19.0, parts.ATTENTION: 5.4, parts.NORM: 6.4, parts.GELU: 8.1, parts.BIAS: 1.5, parts.LOSS: 4.4,
    parts.OPTIMIZER: 1.6, parts.EMBEDDING: 0.3,
}  # fmt: skip
MODEL = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257, "rows": 50304}
N, C, P = 65536, 768, 50304


def make_kernel(
    name: str, ms: float, *by: str, shapes: Any = (), phase: str = "forward", calls: float = 12.0, **more: Any
) -> Kernel:
    """One of a GPU that ran alone."""
    values: dict[str, Any] = {
        "name": name,
        "kind": "kernel",
        "phase": phase,
        "launched_by": list(by),
        "shapes": [list(s) for s in shapes],
        "calls": calls,
        "ms": ms,
        "share_ms": ms,
    }
    return Kernel(**(values | more))


def usual_kernels() -> list[Kernel]:
    """A compiled step: 124 ms of kernels, of which attention takes 13 more than it needs."""
    return [
        make_kernel("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", 22.0, "aten::addmm", shapes=[(2304,), (N, C), (C, 2304)], calls=48),
        make_kernel("nvjet_tst_192x192_64x4_2x1_v_bz_NTN", 29.0, "aten::mm", shapes=[(3072, N), (N, C)], phase="backward", calls=96),
        make_kernel("nvjet_tst_256x128_64x4_1x2_h_bz_TNT", 8.0, "aten::mm", shapes=[(N, C), (C, P)], calls=1),
        make_kernel("nvjet_tst_256x128_64x4_1x2_h_bz_NTN", 16.5, "aten::mm", shapes=[(P, N), (N, C)], phase="backward", calls=2),
        make_kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", 6.0, "aten::_cudnn_attention_forward"),
        make_kernel("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", 12.4, "aten::_cudnn_attention_backward", phase="backward"),
        make_kernel("triton_per_fused_add_native_layer_norm_3", 4.0, calls=24),
        make_kernel("triton_red_fused_native_layer_norm_backward_sum_view_11", 7.0, phase="backward", calls=24),
        make_kernel("triton_poi_fused_gelu_4", 5.0),
        make_kernel("triton_red_fused_gelu_backward_sum_view_9", 6.0, phase="backward"),
        make_kernel("cross_entropy_kernel", 4.6, "stepladder::linear_cross_entropy", "stepladder::cross_entropy_", calls=1),
        make_kernel("void at::native::multi_tensor_apply_kernel<a, b>(c)", 2.0, "aten::_fused_adamw_", phase="update", calls=3),
        make_kernel("triton_red_fused_embedding_dense_backward_13", 0.5, phase="backward", calls=1),
        make_kernel("void mystery_kernel<float, 4>(float*, int)", 0.9, calls=3),
    ]  # fmt: skip


def make_profile(
    kernels: list[Kernel] | None = None, *, step_ms: float = 128.0, of: str = "h100", **changes: Any
) -> Profile:
    """A profile of these kernels, by default `usual_kernels`, with 4.1 ms idle; without noise in its blocks."""
    kernels, spec = usual_kernels() if kernels is None else kernels, DEVICES[of]
    trial = make_trial(step_ms, random.Random(0), blocks=10)
    trial.device_ms[:] = trial.wall_ms[:] = [step_ms] * 10
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "created_utc": "2026-02-01T12:00:00Z", "profile": "h100", "custom": False, "device": dict(spec["device"]),
        "environment": {"commit": "0123456789abcdef", "dirty": False, "torch": "2.11.0", "cuda": "12.8", "triton": "3.6.0"},
        "workload": dict(spec["workload"]), "rungs": ["bf16", "compile", "cudnn_attention", "triton_adamw"], "precision": "bf16", "seed": 1337,
        "token_source": {"corpus": "stdlib"}, "model": dict(MODEL), "trial": trial, "num_steps": 8, "num_counted": 4,
        "peaks": {"datasheet": None, "measured": {"tflops": {"bf16": 798.0}, "bandwidth_gbps": 3000.0, "method": "made up"}},
        "roofline": {"dtype": "bf16", "peaks": "measured", "components_ms": BOUNDS, "step_ms": 88.6, "tokens_per_second": 740e3},
        "traced_step_ms": step_ms + 3.0, "busy_ms": sum(kernel.share_ms for kernel in kernels), "kernels": kernels,
    }  # fmt: skip
    return Profile(**(values | changes))
