"""Kernels of every kind, as traces name them, go to the part of the step that they work for."""

import ast
from pathlib import Path

import pytest

from bench.roofline import roofline
from model import GPT2Config
from results import parts
from results.parts import (
    ATTENTION,
    BIAS,
    BLOCK,
    BOUNDED,
    COMMUNICATION,
    EMBEDDING,
    GELU,
    HEAD,
    LOSS,
    NORM,
    OPTIMIZER,
    OTHER,
    Sizes,
    parts_of,
)  # fmt: skip
from results.profiles import Kernel
from tests.made_profiles import make_kernel

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = Sizes(B=8, T=1024, C=768, H=12, V=50257, P=50304, positions=1024)
N, C, P, V, X = 8192, 768, 50304, 50257, (8, 1024, 768)


def part(name: str, *by: str, sizes: Sizes = SIZES, **more: object) -> tuple[str, ...]:
    return parts_of(make_kernel(name, 1.0, *by, **more), sizes)


@pytest.mark.parametrize(
    ("operator", "shapes", "expected"),
    [
        ("aten::addmm", [(3 * C,), (N, C), (C, 3 * C)], BLOCK),
        ("aten::mm", [(4 * C, N), (N, C)], BLOCK),
        ("aten::mm", [(C, C), (C, N)], BLOCK),
        ("aten::linear", [X, (4 * C, C), (4 * C,)], BLOCK),
        ("mkldnn::_linear_pointwise", [X, (C, C), (C,)], BLOCK),
        ("aten::_scaled_mm", [(N, C), (C, 4 * C), (N, 1), (1, 4 * C)], BLOCK),
        ("aten::mm", [(N, C), (C, P)], HEAD),
        ("aten::mm", [(N, C), (C, V)], HEAD),
        ("aten::linear", [X, (P, C)], HEAD),
        ("aten::mm", [(P, N), (N, C)], HEAD),
        ("aten::mm", [(N, P), (P, C)], HEAD),
        ("aten::mm", [(2048, C), (C, P)], HEAD),  # some rows at a time
        ("aten::_scaled_mm", [(N, C), (C, P), (1, 1), (1, 1)], HEAD),
        ("aten::bmm", [(96, 1024, 64), (96, 64, 1024)], ATTENTION),
        ("aten::matmul", [(8, 12, 1024, 64), (8, 12, 64, 1024)], ATTENTION),
    ],
)
def test_products_go_by_their_shapes(operator: str, shapes: list, expected: str) -> None:
    assert part("nvjet_tst_128x256_64x4_NNT", "MmBackward0", operator, shapes=shapes) == (expected,)


def test_where_the_vocabulary_is_as_large_as_the_batch_products_are_still_told_apart() -> None:
    sizes = Sizes(B=16, T=512, C=256, H=4, V=8192, P=8192, positions=1024)  # B·T is 8192 too
    assert part("gemm", "aten::mm", shapes=[(8192, 256), (256, 768)], sizes=sizes) == (BLOCK,)
    assert part("gemm", "aten::mm", shapes=[(1024, 8192), (8192, 256)], sizes=sizes) == (BLOCK,)
    assert part("gemm", "aten::mm", shapes=[(8192, 256), (256, 8192)], sizes=sizes) == (HEAD,)
    assert part("gemm", "aten::mm", shapes=[(8192, 8192), (8192, 256)], sizes=sizes) == (HEAD,)


CE = "triton_red_fused__log_softmax__to_copy_nll_loss_forward_9"


@pytest.mark.parametrize(
    ("neighbours", "expected"),
    [
        (["a", "triton_per_fused_native_layer_norm_1", CE], HEAD),
        (["a", CE, "nvjet_b"], HEAD),
        ([CE, "nvjet_b", "triton_red_fused_native_layer_norm_backward_2"], HEAD),
        (["cross_entropy_kernel", "triton_tem_fused_mm_3", "c"], HEAD),
        ([CE, "triton_poi_fused_gelu_2", "nvjet_c"], BLOCK),
        (["nvjet_a", "nvjet_b", "nvjet_c"], BLOCK),
        (["", "", "nvjet_c"], BLOCK),
        (["a", "triton_per_fused_native_layer_norm_1", "triton_red_fused__log_softmax_prepare_softmax_online_slice_view_4"], HEAD),
        (["triton_per_fused_sum_15", "triton_poi_fused_embedding_dense_backward_16", ""], HEAD),  # added to the embedding's gradient
        (["a", "triton_per_fused_add_embedding_native_layer_norm_0", "b"], BLOCK),
        ([], OTHER),  # nothing is known of it
    ],
)
def test_products_without_shapes_go_by_their_neighbours(neighbours: list[str], expected: str) -> None:
    assert part("nvjet_tst_128x256_64x4_NNT", neighbours=neighbours) == (expected,)
    assert part("triton_tem_fused_addmm_gelu_7", neighbours=neighbours) == (expected,)


@pytest.mark.parametrize(
    ("path", "shapes", "phase", "expected"),
    [
        (["aten::layer_norm", "aten::native_layer_norm"], [X, (C,), (C,)], "forward", NORM),
        (["NativeLayerNormBackward0", "aten::native_layer_norm_backward"], [X, X], "backward", NORM),
        (["aten::add"], [X, X], "forward", NORM),
        (["NativeLayerNormBackward0", "aten::add_"], [X, X], "backward", NORM),
        (["aten::add"], [X, (1024, C)], "forward", EMBEDDING),
        (["aten::embedding", "aten::index_select"], [(P, C), (N,)], "forward", EMBEDDING),
        (["aten::embedding_dense_backward", "aten::zeros", "aten::fill_"], [(P, C)], "backward", EMBEDDING),
        (["AddBackward0", "aten::sum"], [X], "backward", EMBEDDING),
        (["SliceBackward0", "aten::slice_backward", "aten::copy_"], [(1024, C), (1024, C)], "backward", EMBEDDING),
        (["aten::gelu"], [(8, 1024, 4 * C)], "forward", GELU),
        (["GeluBackward0", "aten::gelu_backward"], [(8, 1024, 4 * C)], "backward", GELU),
        (["aten::to", "aten::_to_copy", "aten::copy_"], [(8, 1024, 4 * C)], "forward", GELU),
        (["AddmmBackward0", "aten::sum"], [(N, 4 * C)], "backward", BIAS),
        (["AddmmBackward0", "aten::sum"], [(N, C)], "backward", BIAS),
        (["aten::softmax", "aten::_softmax"], [(8, 12, 1024, 1024)], "forward", ATTENTION),
        (["aten::mul"], [(8, 12, 1024, 1024), ()], "forward", ATTENTION),
        (["aten::masked_fill", "aten::clone", "aten::copy_"], [(8, 12, 1024, 1024)], "forward", ATTENTION),
        (["ViewBackward0", "aten::clone", "aten::copy_"], [(8, 1024, 3, 12, 64)], "backward", ATTENTION),
        (["aten::_scaled_dot_product_flash_attention_backward"], [(8, 12, 1024, 64)], "backward", ATTENTION),
        (["aten::_cudnn_attention_forward"], [(8, 12, 1024, 64)], "forward", ATTENTION),
        (["stepladder::flash_attention"], [(8, 1024, 3, 12, 64)], "forward", ATTENTION),
        (["aten::cross_entropy_loss", "aten::log_softmax", "aten::_log_softmax"], [(N, V)], "forward", LOSS),
        (["NllLossBackward0", "aten::nll_loss_backward"], [(), (N, V)], "backward", LOSS),
        (["aten::to", "aten::_to_copy", "aten::copy_"], [(8, 1024, V), (8, 1024, V)], "forward", LOSS),
        (["stepladder::linear_cross_entropy", "aten::zeros", "aten::fill_"], [(N,)], "forward", LOSS),
        (["aten::to", "aten::_to_copy", "aten::copy_"], [(3 * C, C), (3 * C, C)], "forward", OPTIMIZER),  # a weight's cast
        (["ToCopyBackward0", "aten::to", "aten::copy_"], [(P, C)], "backward", OPTIMIZER),
        (["torch::autograd::AccumulateGrad", "aten::add_"], [(4 * C,)], "backward", OPTIMIZER),
        (["aten::linalg_vector_norm"], [], "update", OPTIMIZER),
        (["aten::mul_"], [], "update", OPTIMIZER),
        (["stepladder::mlp"], [X, (4 * C, C)], "forward", BLOCK),
        (["stepladder::bias_gelu_gradients", "aten::sum"], [(512, 4 * C)], "backward", GELU),
        (["stepladder::residual_layer_norm_gradients", "aten::sum"], [(132, C)], "backward", NORM),
        (["c10d::allreduce_", "nccl:all_reduce"], [(C,)], "backward", COMMUNICATION),
        (["aten::rand"], [(17, 3)], "forward", OTHER),
        (["aten::ones_like"], [], "backward", OTHER),
    ],
)  # fmt: skip
def test_operators_then_shapes_tell_the_part(path: list[str], shapes: list, phase: str, expected: str) -> None:
    name = "void at::native::vectorized_elementwise_kernel<4, f>(int)"
    assert part(name, *path, shapes=shapes, phase=phase) == (expected,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("triton_per_fused_add_native_layer_norm_3", {NORM}),
        ("triton_red_fused__to_copy_add_embedding_native_layer_norm_0", {NORM, EMBEDDING}),
        ("triton_red_fused_native_layer_norm_backward_sum_view_12", {NORM, BIAS}),
        ("triton_poi_fused__to_copy_gelu_4", {GELU}),
        ("triton_red_fused_gelu_backward_sum_view_7", {GELU, BIAS}),
        ("triton_red_fused_sum_view_5", {BIAS}),
        (CE, {LOSS}),
        ("triton_red_fused__log_softmax_backward_data_nll_loss_backward_sum_1", {LOSS}),
        ("graph_0_cpp_fused__softmax_masked_fill_mul_ones_triu_view_1", {ATTENTION}),
        ("graph_0_cpp_fused__softmax_backward_data__to_copy_masked_fill_mul_sum_view_6", {ATTENTION}),
        ("graph_1_cpp_fused_add_clone_permute_select_backward_transpose_view_7", {ATTENTION}),
        ("graph_0_cpp_fused__to_copy_clone_transpose_view_2", {ATTENTION}),
        ("triton_tem_fused_flex_attention_backward_2", {ATTENTION}),
        ("triton_poi_fused_embedding_dense_backward_sum_3", {EMBEDDING}),
        ("triton_poi_fused_add_6", {NORM}),
        ("triton_poi_fused__to_copy_8", {OPTIMIZER}),
        ("triton_poi_fused__to_copy_view_2", {NORM}),
        ("triton_poi_fused_ones_triu_5", {ATTENTION}),
        ("triton_poi_fused_mul_8", {OTHER}),
    ],
)
def test_fused_kernels_carry_their_parts_in_their_names(name: str, expected: set[str]) -> None:
    assert set(part(name)) == expected


# What torch 2.11 generates for an H100 from GPT-2 124M at B = 64, with the shapes of what each kernel is given.
B64 = Sizes(B=64, T=1024, C=768, H=12, V=50257, P=50257, positions=1024)
M, X64, QKV = 65536, (64, 1024, 768), (64, 1024, 3, 12, 64)
INDUCTOR = [
    ("triton_per_fused__to_copy_add_embedding_native_layer_norm_0", [(64, 1024), (50257, C), (1024, C), (C,), X64], {NORM, EMBEDDING}),
    ("triton_poi_fused__to_copy_t_14", [(50257, C), (50257, C)], {OPTIMIZER}),
    ("triton_red_fused__log_softmax__to_copy__unsafe_view_prepare_softmax_online_view_15", [(M, 1), (M, 50257), (M, 1)], {LOSS}),
    ("triton_per_fused__softmax__to_copy_exp_masked_fill_mul_prepare_softmax_online_sub_view_6", [(768, 1024, 1024)], {ATTENTION}),
    ("triton_red_fused__to_copy_prepare_softmax_online_20", [(M, 1), (M, 50257)], {LOSS}),
    ("triton_poi_fused_ones_triu_5", [(1024, 1024)], {ATTENTION}),
    ("triton_poi_fused__to_copy_view_2", [X64, (M, C)], {NORM}),
    ("triton_poi_fused_gelu_gelu_backward_view_6", [(64, 1024, 4 * C), (M, 4 * C)], {GELU}),
    ("triton_red_fused_gelu_gelu_backward_sum_view_7", [(64, 1024, 4 * C), (1, 4 * C, 32)], {BIAS}),  # from what the last one wrote
    ("triton_per_fused_gelu_gelu_backward_sum_view_8", [(1, 4 * C, 32), (1, 4 * C)], {BIAS}),
    ("triton_red_fused_gelu_gelu_backward_sum_view_7", [(64, 1024, 4 * C), (M, 4 * C), (1, 4 * C, 32)], {GELU, BIAS}),
    ("triton_red_fused_native_layer_norm_backward_sum_view_2", [X64, (1, C, 175)], {BIAS}),
    ("triton_poi_fused_add_clone_permute_select_backward_11", [(64, 12, 1024, 64), (64, 12, 1024, 64), QKV], {ATTENTION}),
    ("triton_red_fused__unsafe_view_add_clone_permute_select_backward_sum_view_12", [QKV, (1, 3 * C, 32)], {BIAS}),
    ("triton_red_fused_sum_3", [(M, C), (1, C, 175)], {BIAS}),
    ("triton_per_fused_sum_17", [X64, (1, 1024, C)], {EMBEDDING}),
    ("triton_poi_fused__to_copy_add_18", [(50257, C), (50257, C), (50257, C)], {OPTIMIZER}),
    (
        "triton_per_fused_add_embedding_dense_backward_masked_fill_native_layer_norm_native_layer_norm_backward_view_14",
        [X64, (M, C), (C,), (1024, C)], {NORM, EMBEDDING},
    ),
    ("triton_red_fused_ne_sum_6", [(64, 1024), (8,)], {LOSS}),
    ("triton_per_fused_add_linear_cross_entropy_native_layer_norm_view_3", [X64, X64, (M, C)], {NORM}),
    ("triton_poi_fused_linear_cross_entropy_1", [], {LOSS}),
    # Padded by the compiler, to 50,264 columns.
    ("triton_poi_fused__to_copy_mm_t_15", [(50257, C), (C, 50264)], {OPTIMIZER}),
    ("triton_red_fused__log_softmax__to_copy__unsafe_view_mm_prepare_softmax_online_view_16", [(M, 50264), (M, 1)], {LOSS}),
    ("triton_poi_fused_mm_2", [(50257, C), (50264, C)], {OPTIMIZER}),
    # fp8: the product's weights, and what it multiplies them with.
    ("triton_per_fused__scaled_mm__to_copy_abs_amax_clamp_div_native_layer_norm_t_view_2", [(4 * C, C), (C, 4 * C), (1, 4 * C)], {OPTIMIZER}),
    ("triton_red_fused__scaled_mm__to_copy_abs_amax_clamp_div_gelu_t_view_4", [(C, 4 * C), (4 * C, C), (1, C)], {OPTIMIZER}),
    ("triton_red_fused__scaled_mm__to_copy_abs_amax_clamp_div_gelu_t_view_3", [(M, 4 * C), (M, 4 * C), (M, 1)], {GELU}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "expected"), INDUCTOR)
def test_what_the_compiler_makes_for_an_h100_goes_where_its_work_is(name: str, shapes: list, expected: set[str]) -> None:
    assert set(part(name, name, shapes=shapes, sizes=B64, phase="backward")) == expected


@pytest.mark.parametrize("shapes", [[(M, C), (C, 50264)], [(50264, M), (M, C)], [(M, 50264), (50264, C)]])
def test_a_product_that_the_compiler_padded_is_still_the_heads(shapes: list) -> None:
    assert part("nvjet_tst_256x128_64x4_1x2_h_bz_TNT", "aten::mm", shapes=shapes, sizes=B64) == (HEAD,)
    assert part("nvjet", "aten::mm", shapes=[(M, C), (C, 50257 + 4 * C)], sizes=B64) == (BLOCK,)  # no vocabulary of ours


def test_sums_that_the_compilers_norms_leave_over_are_the_norms() -> None:
    name = "void at::native::reduce_kernel<512, 1, f>(f)"
    assert part(name, "CompiledFunctionBackward", "aten::sum", shapes=[(2048, C)], phase="backward", sizes=B64) == (NORM,)
    assert part(name, "AddmmBackward0", "aten::sum", shapes=[(M, C)], phase="backward", sizes=B64) == (BIAS,)


def test_a_fused_cast_goes_by_its_shape_where_that_is_known() -> None:
    assert part("triton_poi_fused__to_copy_8", "triton_poi_fused__to_copy_8", shapes=[(4 * C, C), (4 * C, C)]) == (
        OPTIMIZER,
    )
    assert part("triton_poi_fused__to_copy_8", "triton_poi_fused__to_copy_8", shapes=[X, X]) == (NORM,)
    assert part("triton_tem_fused_addmm_gelu_7", "x", shapes=[(N, C), (C, 4 * C), (N, 4 * C)]) == (BLOCK,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64> >(Flash_bwd_params)",
            ATTENTION,
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1", ATTENTION),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, 1, 128>(cudnn::fusion::Params)", ATTENTION),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel::Params)", ATTENTION),
        (
            "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float, float, LogSoftMaxForwardEpilogue>(f)",
            LOSS,
        ),
        ("void at::native::nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>(float*)", LOSS),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int)", NORM),
        ("void at::native::(anonymous namespace)::cuComputeGradInput_GammaBetaBackward<float>(float const*)", NORM),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&)>(int)",
            GELU,
        ),
        (
            "void at::native::(anonymous namespace)::embedding_backward_feature_kernel<float, float>(long const*)",
            EMBEDDING,
        ),
        (
            "void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, FusedAdamMathFunctor>(long)",
            OPTIMIZER,
        ),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", COMMUNICATION),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", OTHER),  # a product, nobody knows whose
        ("Memcpy HtoD (Pageable -> Device)", OTHER),
        ("void mystery_kernel<float>(float*)", OTHER),
    ],
)
def test_where_no_operator_is_known_the_kernels_name_is_asked(name: str, expected: str) -> None:
    assert part(name, phase="") == (expected,)


def test_communication_in_the_update_is_still_communication() -> None:
    assert part("ncclDevKernel_AllGather", phase="update") == (COMMUNICATION,)


OURS = {
    "adamw": OPTIMIZER, "bias_gelu": GELU, "cross_entropy": LOSS, "flash_attention": ATTENTION, "layer_norm": NORM, "linear_gelu": BLOCK,
}  # fmt: skip


def jitted(path: Path) -> list[str]:
    functions = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
    return [
        f.name
        for f in functions
        if f.name.endswith("_kernel") and any("jit" in ast.unparse(d) for d in f.decorator_list)
    ]


def test_every_kernel_of_this_project_is_known_by_its_name() -> None:
    found = {path.stem: jitted(path) for path in sorted((ROOT / "kernels").glob("*.py"))}
    assert {stem for stem, names in found.items() if names} == set(OURS)
    for stem, names in found.items():
        for name in names:
            assert part(name, phase="") == (OURS[stem],), name


def test_every_part_of_the_roofline_is_a_part_here() -> None:
    peaks = {"tflops": {"bf16": 1.0}, "bandwidth_gbps": 1.0}
    roof = roofline(GPT2Config(), num_parameters=1, tokens=1, seq_len=1, peaks=peaks)
    assert set(roof["components_ms"]) == set(BOUNDED) and not {OTHER, COMMUNICATION, parts.IDLE} & set(BOUNDED)


def test_every_kernel_has_a_part_whatever_it_is() -> None:
    for shapes in ([], [()], [(0,)], [(1, 1)], [(3,), (4, 5, 6, 7, 8)]):
        for name in ("", "x", "triton_poi_fused_", "triton_tem_fused_mm_0", "aten::mm"):
            kernel: Kernel = make_kernel(name, 1.0, *([name] if name else []), shapes=shapes)
            (found,) = parts_of(kernel, SIZES)
            assert found in (*BOUNDED, OTHER)
