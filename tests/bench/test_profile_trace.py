"""Traces of a GPU and of a processor, and what they say of a step, worked out by hand.

``gpu_trace.json`` is written by hand, as torch.profiler exports a trace of an H100: no such run ever was. It has a kernel before
the first step, two whole steps and the first two kernels of a third; microseconds from the first kernel of a step:

    stream 7    index_select 0-20 · addmm 20-120 · flash 120-180 · triton LayerNorm 200-250 · mm 250-330 · triton loss 330-370
                triton GELU + sum 370-430 · mm 430-520 · mystery 560-570, in the second step 560-590 · AdamW 700-750 · memset 750-760
    stream 20   NCCL 460-560, of which 60 beside the mm

So a step is 1000 long and something runs for 610 in the first, 630 in the second.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.profile_sums import Traced, middle_half, share_out
from bench.profile_trace import read
from results.parts import Sizes, parts_of
from results.profiles import Kernel, load, write
from tests.made_profiles import make_profile

GPU = json.loads((Path(__file__).parent / "gpu_trace.json").read_text())
SIZES = Sizes(B=2, T=1024, C=768, H=12, V=50257, P=50304, positions=1024)
EXPECTED_US = {  # of the clock, per step
    "embedding": 20, "block GEMMs": 100, "attention": 60, "residual + LayerNorm": 50, "head GEMMs": 80 + 60, "cross-entropy": 40,
    "GELU+bias gradients": 60, "communication": 70, "other": 20, "optimizer": 60,
}  # fmt: skip


def traced(trace: dict = GPU, **more: Any) -> Traced:
    return read(trace, **({"num_steps": 2, "on_gpu": True} | more))


def changed(change: Any) -> dict:
    trace = copy.deepcopy(GPU)
    trace["traceEvents"] = [e for e in trace["traceEvents"] if change(e) is not False]
    return trace


def by_part(found: Traced) -> dict[str, float]:
    total: dict[str, float] = {}
    for kernel in found.kernels:
        name = "+".join(parts_of(kernel, SIZES))
        total[name] = total.get(name, 0.0) + kernel.share_ms * 1e3
    return total


def only(found: Traced, name: str) -> Kernel:
    (kernel,) = [k for k in found.kernels if name in k.name]
    return kernel


def test_every_part_of_the_handwritten_step_comes_out_as_worked_out() -> None:
    found = traced()
    assert by_part(found) == pytest.approx(EXPECTED_US)
    assert (found.step_ms, found.busy_ms) == pytest.approx((1.0, 0.62))
    assert sum(k.share_ms for k in found.kernels) == pytest.approx(found.busy_ms)


def test_where_two_streams_run_at_once_the_time_is_shared_and_durations_stay() -> None:
    found = traced()
    nccl, product = only(found, "ncclDevKernel"), only(found, "coopB_NTN")
    assert (nccl.ms, nccl.share_ms) == pytest.approx((0.1, 0.07))
    assert (product.ms, product.share_ms) == pytest.approx((0.09, 0.06))


def test_what_launched_a_kernel_is_known_across_threads() -> None:
    found = traced()
    product = only(found, "coopB_NTN")
    assert (
        product.launched_by == ["aten::mm"]
        and product.shapes == [[50304, 2048], [2048, 768]]
        and product.phase == "backward"
    )
    assert only(found, "indexSelect").launched_by == ["aten::embedding", "aten::index_select"]
    assert only(found, "pytorch_flash").phase == "forward" and only(found, "multi_tensor_apply").phase == "update"
    assert only(found, "multi_tensor_apply").shapes == [] and only(found, "Memset").kind == "fill"
    assert all(k.calls == 1 for k in found.kernels)


def test_what_nobody_knows_keeps_its_name_and_is_said() -> None:
    found = traced()
    mystery = only(found, "mystery")
    assert mystery.launched_by == [] and mystery.phase == "" and mystery.ms == pytest.approx(0.02)
    # 10, 30 and twice 100 of NCCL; of 50 before the steps, 670, 690 and 120 in them
    assert found.flags == ["16 % of the kernels' time was launched by no known operator, and is told by names alone"]


def test_what_ran_before_the_first_step_or_is_a_mark_does_not_count() -> None:
    assert not [k for k in traced().kernels if "coopA_NNT" in k.name or "stepladder" in k.name]


def test_without_external_ids_the_call_of_the_driver_tells_the_operator() -> None:
    def forget(e: dict) -> None:
        if e.get("cat") in ("kernel", "gpu_memset"):
            e["args"].pop("External id", None)

    assert traced(changed(forget)).kernels == traced().kernels


def test_a_kernel_that_is_planted_takes_the_time_it_takes() -> None:
    def slow(e: dict) -> None:
        if e.get("cat") == "kernel" and "native_layer_norm" in e["name"]:
            e["dur"] += 15  # into the gap before it
            e["ts"] -= 15

    assert by_part(traced(changed(slow))) == pytest.approx(EXPECTED_US | {"residual + LayerNorm": 65})


def in_graphs() -> dict:
    """The same, but forward and backward pass are a CUDA graph each: on the host nothing is left but their launches."""

    def graph(e: dict) -> bool:
        place = (e["ts"] - 300) % 1000
        if e.get("cat") == "kernel" and e["ts"] >= 1300 and place < 700:
            e["args"] |= {
                "External id": 0,
                "correlation": int(e["ts"] - 300) // 1000 * 10 + (place >= 370),
                "graph id": 3,
            }
        kept = ("stepladder", "aten::_fused_adamw_")
        return e.get("cat") not in ("cpu_op", "user_annotation") or e["name"].startswith(kept)

    trace = changed(graph)
    for step in (1, 2, 3):
        for half, moment in enumerate((50, 400)):
            launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "pid": 4711, "tid": 100}
            launch |= {"ts": 1000 * step + moment, "dur": 5, "args": {"cbid": 311, "correlation": 10 * step + half}}
            trace["traceEvents"].append(launch)
    return trace


def test_in_a_cuda_graph_names_and_neighbours_tell_what_they_can() -> None:
    found = traced(in_graphs())
    product = only(found, "coopA_TNT")
    assert product.launched_by == [] and product.shapes == []
    assert [name[:23] for name in product.neighbours] == [
        "void pytorch_flash::fla",
        "triton_per_fused_add_na",
        "triton_red_fused__log_s",
    ]
    assert parts_of(product, SIZES) == ("head GEMMs",)
    assert {parts_of(k, SIZES) for k in found.kernels if "coopA_bias" in k.name} == {("block GEMMs",)}
    assert only(found, "pytorch_flash").phase == "forward" and only(found, "gelu_backward").phase == "backward"
    # All but AdamW and memset, 60 in each step, of 1530.
    assert found.busy_ms == pytest.approx(0.62) and found.flags[0].startswith(
        "92 % of the kernels' time was launched by no"
    )


def test_a_trace_that_cannot_be_cut_into_steps_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="3 steps of 4"):
        traced(num_steps=3)
    with pytest.raises(ValueError, match="saw no kernel on this GPU"):
        traced(changed(lambda e: e.get("cat") != "kernel"))
    with pytest.raises(ValueError, match="does not tell which step"):
        traced(changed(lambda e: e.get("cat") not in ("cuda_runtime", "cuda_driver", "cpu_op")))
    with pytest.raises(ValueError, match="0 steps of 3"):
        traced({})


def op(name: str, start: float, end: float, cat: str = "cpu_op", tid: int = 1, **args: Any) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": start, "dur": end - start, "args": args}


def test_a_processors_operators_count_without_those_that_they_call() -> None:
    events = []
    for step in range(3):
        b = 100 * step
        events += [
            op("stepladder step", b, b + 95, "user_annotation"), op("stepladder backward", b + 1, b + 60, "user_annotation"),
            op("stepladder forward", b + 2, b + 30, "user_annotation"),
            op("aten::linear", b + 5, b + 25), op("aten::addmm", b + 7, b + 22, **{"Input Dims": [[4], [2, 3], [3, 4], []]}),
            op("autograd::engine::evaluate_function: AddmmBackward0", b + 35, b + 55), op("AddmmBackward0", b + 36, b + 50),
            op("aten::mm", b + 40, b + 50), op("aten::sum", b + 45, b + 52, tid=2),
            op("stepladder update", b + 65, b + 90, "user_annotation"), op("Optimizer.step#AdamW.step", b + 66, b + 88, "user_annotation"),
            op("aten::mul_", b + 70, b + 80, **{"Input Dims": [[4, 3]]}), op("aten::mul_", b + 80, b + 80),
        ]  # fmt: skip
    found = traced({"traceEvents": events}, on_gpu=False)
    told = {k.name: (round(k.ms * 1e3, 9), k.share_ms * 1e3, k.calls, k.phase, k.launched_by) for k in found.kernels}
    assert told == {
        "aten::addmm": (15, pytest.approx(15), 1, "forward", ["aten::linear", "aten::addmm"]),
        "aten::linear": (5, pytest.approx(5), 1, "forward", ["aten::linear"]),
        "AddmmBackward0": (4, pytest.approx(4), 1, "backward", ["AddmmBackward0"]),
        "aten::mm": (10, pytest.approx(5 + 5 / 2), 1, "backward", ["AddmmBackward0", "aten::mm"]),
        # in another thread, beside the product
        "aten::sum": (7, pytest.approx(5 / 2 + 2), 1, "backward", ["aten::sum"]),
        "aten::mul_": (10, pytest.approx(10), 2, "update", ["aten::mul_"]),
    }
    assert (found.step_ms, found.busy_ms) == pytest.approx((0.1, 0.046))
    assert next(k for k in found.kernels if k.name == "aten::addmm").shapes == [[4], [2, 3], [3, 4]]


def test_steps_that_something_else_delayed_do_not_count() -> None:
    events, begin = [], 0.0
    for length in (100, 100, 900, 104, 60, 102, 96, 950, 100):  # the last one has no next
        events.append(op("stepladder step", begin, begin + length - 1, "user_annotation"))
        events.append(op("aten::mm", begin + 5, begin + length - 10))
        begin += length
    found = traced({"traceEvents": events}, num_steps=8, on_gpu=False)
    assert (found.num_counted, found.step_ms) == (4, pytest.approx((100 + 100 + 102 + 104) / 4e3))
    assert found.busy_ms == pytest.approx(found.step_ms - 0.015) and [k.calls for k in found.kernels] == [1.0]


def test_the_middle_half_keeps_its_order() -> None:
    windows = [(0, 3), (3, 4), (4, 9), (9, 11), (11, 15)]
    assert middle_half(windows) == [(0, 3), (9, 11), (11, 15)]
    assert middle_half(windows[:3]) == windows[:3] and middle_half([(0, 1)]) == [(0, 1)]


spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)


@given(spans)
def test_shares_add_up_to_the_time_in_which_anything_runs(found: list[tuple[int, int]]) -> None:
    shares, busy = share_out(found)
    ticks = {tick for start, end in found for tick in range(start, end)}
    assert busy == len(ticks) and sum(shares) == pytest.approx(busy)
    for (start, end), share in zip(found, shares, strict=True):
        alone = sum(1 / sum(s <= tick < e for s, e in found) for tick in range(start, end))
        assert share == pytest.approx(alone)


def test_the_fixture_becomes_a_profile_that_is_kept_and_read(tmp_path: Path) -> None:
    found = traced()
    profile = make_profile(
        found.kernels, step_ms=0.9, traced_step_ms=found.step_ms, busy_ms=found.busy_ms, flags=found.flags
    )
    assert load(write(profile, tmp_path)) == profile
