"""What a user asks for becomes a plan, or one clear line."""

import re
from pathlib import Path

import pytest

from bench.ladder import make_plan
from bench.plan import Schedule
from bench.session import visiting_orders
from optim_ladder import DERIVATIONS
from tests.optim_ladder.devices import CPU, H100

WHERE = {"results_dir": Path("records"), "charts_dir": Path("charts")}


def test_the_baseline_is_always_measured_twice() -> None:
    for derivation in (*DERIVATIONS, "all"):
        plan = make_plan(CPU, derivation=derivation, **WHERE)
        assert list(plan.settings)[:2] == ["baseline", "baseline-again"]
        assert plan.settings["baseline"] == plan.settings["baseline-again"]


def test_every_distinct_setting_is_measured_once() -> None:
    plan = make_plan(CPU, derivation="all", **WHERE)
    wanted = {p.settings for places in plan.derivations.values() for p in places if p.settings}
    assert set(plan.settings.values()) == wanted
    assert len(plan.settings) == len(wanted) + 1  # the baseline's twin
    assert list(plan.derivations) == ["cumulative", "single", "leave-one-out", "choices", "scaling"]


def test_keeping_to_some_rungs() -> None:
    plan = make_plan(CPU, rungs=["flash", "bf16"], **WHERE)
    assert list(plan.settings) == ["baseline", "baseline-again", "bf16", "bf16+flash"]
    assert {"scaling", "choices"}.isdisjoint(make_plan(CPU, rungs=["flash"], derivation="all", **WHERE).derivations)


def test_choosing_between_rungs_of_one_slot() -> None:
    plan = make_plan(CPU, rungs=["bf16", "compile", "bf16_weights"], derivation="choices", **WHERE)
    assert list(plan.settings) == ["baseline", "baseline-again", "compile+bf16_weights", "bf16+compile", "compile"]
    assert [place.label for place in plan.derivations["choices"]] == ["all", "bf16", "no precision"]


def test_the_workload_can_be_overridden() -> None:
    plan = make_plan(H100, profile_name="a30", micro_batch=4, seq_len=256, model="gpt2-medium", **WHERE)
    w = plan.workload
    assert (plan.profile, w.model, w.micro_batch, w.seq_len, w.vocab_size) == ("a30", "gpt2-medium", 4, 256, 50257)


def test_quick_is_one_short_trial() -> None:
    plan = make_plan(CPU, quick=True, schedule=Schedule(time_limit_s=7), **WHERE)
    assert (plan.schedule.num_trials, plan.schedule.num_blocks, plan.schedule.time_limit_s) == (1, 5, 7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"derivation": "singel"}, "unknown derivation 'singel': did you mean 'single'? choose from cumulative, single"),
        ({"rungs": ["bf-16"]}, "unknown rung 'bf-16': did you mean 'bf16'?"),
        ({"rungs": ["bf16", "fp16"]}, "rungs 'bf16' and 'fp16' exclude each other (precision); leave one out"),
        ({"rungs": ["cudnn_attention"]}, "rung 'cudnn_attention' needs 'bf16'; add it"),
        ({"profile_name": "h10"}, "unknown profile 'h10': did you mean 'h100'?"),
        ({"model": "gpt2-larg"}, "unknown model 'gpt2-larg': did you mean 'gpt2-large'?"),
        ({"rungs": ["tf32"]}, "nothing to measure beside the baseline (tf32: needs the tensor cores"),
        ({"rungs": ["ddp"]}, "nothing to measure beside the baseline (no rung of that derivation is named)"),
        ({"micro_batch": 0}, "micro_batch is 0; it must be a positive integer"),
        ({"derivation": "scaling", "rungs": ["bf16"]}, "derivation 'scaling' needs rung 'ddp'; add it to --rungs"),
        ({"derivation": "choices", "rungs": ["bf16"]}, "derivation 'choices' needs two rungs of one slot that can run here"),
        ({"derivation": "choices", "rungs": ["bf16", "bf16_weights", "cuda_graphs"]}, "rung 'cuda_graphs' needs 'compile'"),
    ],
)
def test_a_wrong_wish_is_one_clear_line(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make_plan(CPU, **wrong, **WHERE)
    assert "\n" not in str(caught.value)


def test_trials_visit_everything_once_in_balanced_order() -> None:
    names = [f"s{i}" for i in range(7)]
    orders = visiting_orders(names, 6, seed=3)
    assert all(sorted(order) == names for order in orders)
    for even, odd in zip(orders[::2], orders[1::2], strict=True):
        assert odd == even[::-1]  # the sum of a setting's places is the same for all: a steady drift cancels
    assert orders[0] != orders[2] != names
    assert visiting_orders(names, 6, seed=3) == orders != visiting_orders(names, 6, seed=4)
