"""The step taken apart adds up, and what was put in comes out first."""

import dataclasses

import pytest

from results import parts
from results.gaps import breakdown, shares
from tests.made_profiles import BOUNDS, make_kernel, make_profile, usual_kernels


def by_name(profile):
    return {part.name: part for part in breakdown(profile).parts}


def test_parts_add_up_to_the_step_and_stand_beside_their_bounds() -> None:
    found = breakdown(make_profile())
    assert sum(part.ms for part in found.parts) == pytest.approx(found.total_ms) == pytest.approx(128.0)
    assert (
        found.off_ms == pytest.approx(0.0)
        and found.step_ms == 128.0
        and found.bound_ms == pytest.approx(sum(BOUNDS.values()))
    )
    gaps = [part.gap_ms for part in found.parts]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(gaps) == pytest.approx(found.total_ms - found.bound_ms)
    told = by_name(make_profile())
    assert told[parts.ATTENTION].ms == pytest.approx(18.4) and told[parts.ATTENTION].bound_ms == 5.4
    assert told[parts.ATTENTION].gap_ms == pytest.approx(13.0) and told[parts.ATTENTION].over == pytest.approx(
        18.4 / 5.4
    )
    assert [part.name for part in found.parts[:2]] == [parts.ATTENTION, parts.BLOCK]
    assert told[parts.IDLE].ms == pytest.approx(128.0 - make_profile().busy_ms) and told[parts.IDLE].bound_ms == 0.0


@pytest.mark.parametrize(
    ("planted", "first"),
    [
        (make_kernel("triton_poi_fused_gelu_4", 40.0), parts.GELU),
        (make_kernel("adamw_kernel", 40.0, phase="update"), parts.OPTIMIZER),
        (make_kernel("void planted_kernel<int>(int)", 40.0), parts.OTHER),
        (make_kernel("ncclDevKernel_AllReduce", 40.0), parts.COMMUNICATION),
        (make_kernel("nvjet", 40.0, "aten::mm", shapes=[(65536, 768), (768, 50304)]), parts.HEAD),
    ],
)
def test_a_planted_slow_kernel_comes_first(planted, first: str) -> None:
    found = breakdown(make_profile([*usual_kernels(), planted], step_ms=168.0))
    assert found.parts[0].name == first and found.parts[0].items[0].kernel is planted
    assert found.total_ms == pytest.approx(168.0)


def test_a_device_that_waits_is_idle_first() -> None:
    assert breakdown(make_profile(step_ms=170.0)).parts[0].name == parts.IDLE


def test_kernels_slower_under_the_profiler_than_the_step_leave_no_idle_time_and_say_so() -> None:
    profile = make_profile(step_ms=120.0)
    found = breakdown(profile)
    assert by_name(profile)[parts.IDLE].ms == 0.0
    assert found.off_ms == pytest.approx(profile.busy_ms - 120.0) and found.total_ms == pytest.approx(profile.busy_ms)


def test_idle_is_never_more_than_the_trace_saw() -> None:
    profile = make_profile(step_ms=200.0, traced_step_ms=make_profile().busy_ms + 1.0)
    assert by_name(profile)[parts.IDLE].ms == pytest.approx(1.0)
    assert breakdown(profile).off_ms == pytest.approx(profile.busy_ms + 1.0 - 200.0)


def test_fused_time_is_divided_in_proportion_to_the_bounds() -> None:
    assert shares((parts.GELU, parts.BIAS), BOUNDS) == pytest.approx({parts.GELU: 8.1 / 9.6, parts.BIAS: 1.5 / 9.6})
    assert shares((parts.GELU, parts.BIAS), None) == {parts.GELU: 0.5, parts.BIAS: 0.5}
    assert shares((parts.OTHER,), BOUNDS) == {parts.OTHER: 1.0}
    alone = make_profile([make_kernel("triton_red_fused_gelu_backward_sum_view_7", 96.0)], step_ms=96.0)
    told = by_name(alone)
    assert told[parts.GELU].over == pytest.approx(told[parts.BIAS].over) == pytest.approx(10.0)


def test_time_on_several_streams_counts_with_its_share() -> None:
    kernels = [
        make_kernel("ncclDevKernel_AllReduce", 10.0, share_ms=6.0), make_kernel("triton_poi_fused_gelu_4", 8.0, share_ms=4.0)
    ]  # fmt: skip
    told = by_name(make_profile(kernels, step_ms=12.0))
    assert (told[parts.COMMUNICATION].ms, told[parts.GELU].ms, told[parts.IDLE].ms) == pytest.approx((6.0, 4.0, 2.0))


def test_without_peaks_parts_stand_in_order_of_their_time() -> None:
    found = breakdown(make_profile(roofline=None))
    assert found.bound_ms is None and found.parts[0].name == parts.BLOCK
    assert all(part.gap_ms is None and part.over is None for part in found.parts)
    assert [part.ms for part in found.parts] == sorted((part.ms for part in found.parts), reverse=True)


def test_a_part_without_kernels_still_has_its_bound() -> None:
    kernels = [k for k in usual_kernels() if "embedding" not in k.name]
    told = by_name(make_profile(kernels))
    assert told[parts.EMBEDDING].ms == 0.0 and told[parts.EMBEDDING].gap_ms == -0.3


def test_unknown_kernels_are_other_and_kept_by_name() -> None:
    told = by_name(make_profile())
    assert [item.kernel.name for item in told[parts.OTHER].items] == ["void mystery_kernel<float, 4>(float*, int)"]
    assert dataclasses.asdict(told[parts.OTHER])["ms"] == pytest.approx(0.9)
