"""The list of rungs, settings made of them, and the ladders derived from it."""

import importlib
import itertools
import pkgutil
import re
from dataclasses import replace

import pytest
import torch

import optim_ladder.rungs
from optim_ladder import DEFAULT, LADDER, Rung, Settings, Workload, derive, in_order, rung
from optim_ladder.derive import climb, climbing_order
from optim_ladder.rung import REORDERED
from tests.optim_ladder.devices import CPU, H100, T4, gpu

GPU_WORKLOAD = Workload(micro_batch=64)
CPU_WORKLOAD = Workload(model="nano", vocab_size=8192, micro_batch=2, seq_len=512)


@pytest.fixture(autouse=True)
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended GPUs have cuDNN 9 and Triton, whatever this machine's torch was built with."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr("optim_ladder.rungs.compile.find_spec", lambda name: object())
    monkeypatch.setattr("kernels.find_spec", lambda name: object())
    monkeypatch.setattr("kernels.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_every_rung_file_stands_on_the_ladder_once() -> None:
    files = [module.name for module in pkgutil.iter_modules(optim_ladder.rungs.__path__)]
    assert sorted(r.name for r in LADDER) == sorted(files)
    for name in files:
        assert importlib.import_module(f"optim_ladder.rungs.{name}").RUNG is rung(name)


def test_the_ladder_is_topological() -> None:
    names = [r.name for r in LADDER]
    for i, r in enumerate(LADDER):
        assert set(r.needs) <= set(names[:i]), r.name


@pytest.mark.parametrize("r", LADDER, ids=lambda r: r.name)
def test_every_rung_tells_its_story(r: Rung) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", r.name)
    assert r.source.startswith("https://")
    assert len(r.essay.split()) >= 50
    assert r.drift.loss >= REORDERED.loss


def test_rungs_keep_ladder_order_however_they_are_given() -> None:
    names = ("bf16", "compile", "flash", "fused_adamw")
    settings = {Settings(workload=CPU_WORKLOAD, rungs=order) for order in itertools.permutations(names)}
    assert len(settings) == 1
    assert settings.pop().rungs == names
    assert Settings(workload=CPU_WORKLOAD, rungs=("bf16", "bf16")).rungs == ("bf16",)


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        (("flsh",), "unknown rung 'flsh': did you mean 'flash'? choose from tf32, bf16"),
        (("bf16", "fp16"), "rungs 'bf16' and 'fp16' exclude each other (precision); leave one out"),
        (("cudnn_attention",), "rung 'cudnn_attention' needs 'bf16'; add it, or leave 'cudnn_attention' out"),
    ],
)
def test_wrong_rungs_are_refused(rungs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(workload=CPU_WORKLOAD, rungs=rungs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 0}, "micro_batch is 0; it must be a positive integer"),
        ({"seq_len": -1}, "seq_len is -1"),
        ({"world_size": 1.5}, "world_size is 1.5"),
        ({"model": "gpt-2"}, "unknown model 'gpt-2': did you mean 'gpt2'?"),
    ],
)
def test_a_wrong_workload_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(CPU_WORKLOAD, **change)


def test_settings_survive_json() -> None:
    settings = Settings(workload=replace(GPU_WORKLOAD, grad_accumulation=2, world_size=4), rungs=("bf16", "ddp"))
    assert Settings.from_dict(settings.to_dict()) == settings
    assert settings.id == "bf16+ddp@4"


def test_a_need_is_met_by_what_took_over_its_slot() -> None:
    assert Settings(workload=GPU_WORKLOAD, rungs=("fp16", "cudnn_attention")).precision == "fp16"


def rungs_of(places) -> list[str]:
    return ["+".join(p.settings.rungs) if p.settings else f"({p.label})" for p in places]


def test_cumulative_on_an_h100() -> None:
    places = derive("cumulative", DEFAULT, H100, GPU_WORKLOAD)
    to_the_norms = "tf32+bf16+compile+cudnn_attention+padded_vocab+triton_cross_entropy+triton_layer_norm"
    late = f"{to_the_norms}+triton_mlp+triton_adamw+bf16_weights".replace("bf16+", "", 1)
    assert rungs_of(places) == [
        "",
        "tf32",
        "tf32+bf16",
        "(fp16)",
        "tf32+bf16+compile",
        "tf32+bf16+compile+efficient_attention",
        "tf32+bf16+compile+flash",  # takes its slot over, as those that follow take flash's
        "tf32+bf16+compile+flex_attention",
        "tf32+bf16+compile+triton_attention",
        "tf32+bf16+compile+cudnn_attention",
        "tf32+bf16+compile+cudnn_attention+padded_vocab",
        "tf32+bf16+compile+cudnn_attention+padded_vocab+triton_cross_entropy",
        to_the_norms,
        f"{to_the_norms}+triton_mlp",
        f"{to_the_norms}+triton_mlp+fused_adamw",
        f"{to_the_norms}+triton_mlp+triton_adamw",
        late,
        f"{late}+max_autotune".replace("compile+", ""),
        f"{late}+max_autotune+cuda_graphs".replace("compile+", ""),
    ]
    measured = [p for p in places if p.settings]
    assert [p.previous for p in measured[1:]] == [p.settings for p in measured[:-1]]


def test_cumulative_on_a_t4_takes_fp16_and_leaves_out_what_needs_newer_cores() -> None:
    places = derive("cumulative", DEFAULT, T4, GPU_WORKLOAD)
    assert rungs_of(places) == [
        "", "(tf32)", "(bf16)", "fp16", "fp16+compile", "fp16+compile+efficient_attention", "fp16+compile+flash",
        "(flex_attention)", "(triton_attention)", "(cudnn_attention)", "fp16+compile+flash+padded_vocab",
        "(triton_cross_entropy)", "(triton_layer_norm)", "(triton_mlp)", "fp16+compile+flash+padded_vocab+fused_adamw",
        "(triton_adamw)", "(bf16_weights)", "fp16+flash+padded_vocab+fused_adamw+max_autotune",
        "fp16+flash+padded_vocab+fused_adamw+max_autotune+cuda_graphs",
    ]  # fmt: skip
    reasons = {p.label: p.skipped for p in places if p.skipped}
    assert "compute capability 8.0" in reasons["tf32"]
    assert "fp16 is the rung for it" in reasons["bf16"]


def test_cumulative_on_a_cpu_says_why_rungs_are_missing() -> None:
    reasons = {p.label: p.skipped for p in derive("cumulative", DEFAULT, CPU, CPU_WORKLOAD) if p.skipped}
    assert reasons.keys() == {
        "tf32", "fp16", "efficient_attention", "flex_attention", "triton_attention", "cudnn_attention", "padded_vocab",
        "triton_cross_entropy", "triton_layer_norm", "triton_mlp", "triton_adamw", "cuda_graphs",
    }  # fmt: skip
    assert reasons["triton_cross_entropy"].startswith("needs an NVIDIA GPU (for tests, ")
    assert reasons["padded_vocab"] == "the vocabulary of 8192 is already a multiple of 128"


def test_single_brings_what_a_rung_needs() -> None:
    places = derive("single", DEFAULT, H100, GPU_WORKLOAD)
    assert rungs_of(places) == [
        "", "tf32", "bf16", "(fp16)", "compile", "efficient_attention", "flash", "compile+flex_attention",
        "triton_attention", "bf16+cudnn_attention", "padded_vocab", "triton_cross_entropy", "triton_layer_norm",
        "triton_mlp", "fused_adamw", "triton_adamw", "bf16_weights", "max_autotune",
        "compile+cuda_graphs",
    ]  # fmt: skip
    assert {p.previous.id for p in places[1:] if p.previous} == {"baseline"}


def test_single_brings_what_meets_the_need_where_the_rung_needed_is_not_named() -> None:
    """As on the top of the ladder, where a later rung of the slot has taken over."""
    chosen = in_order(["cudnn_attention", "bf16_weights", "max_autotune", "cuda_graphs"])
    assert rungs_of(derive("single", chosen, H100, GPU_WORKLOAD)) == [
        "", "cudnn_attention+bf16_weights", "bf16_weights", "max_autotune", "max_autotune+cuda_graphs",
    ]  # fmt: skip
    unmet = derive("single", in_order(["cudnn_attention", "compile"]), H100, GPU_WORKLOAD)
    assert [p.skipped for p in unmet] == [None, None, "needs 'bf16', which is not on"]
    cannot = derive("single", in_order(["bf16", "bf16_weights", "fp8"]), T4, GPU_WORKLOAD)
    assert "no fp8 arithmetic" in cannot[-1].skipped


def test_leave_one_out_takes_dependents_along_and_brings_back_what_was_replaced() -> None:
    places = {p.label: p for p in derive("leave-one-out", DEFAULT, H100, GPU_WORKLOAD)}
    everything = {
        "tf32", "cudnn_attention", "padded_vocab", "triton_cross_entropy", "triton_layer_norm", "triton_adamw",
        "triton_mlp", "bf16_weights", "max_autotune", "cuda_graphs",
    }  # fmt: skip
    assert set(places["all"].settings.rungs) == everything
    assert set(places["bf16_weights"].settings.rungs) == everything - {"bf16_weights"} | {"bf16"}
    assert set(places["cudnn_attention"].settings.rungs) == everything - {"cudnn_attention"} | {"triton_attention"}
    assert set(places["triton_adamw"].settings.rungs) == everything - {"triton_adamw"} | {"fused_adamw"}
    assert set(places["max_autotune"].settings.rungs) == everything - {"max_autotune"} | {"compile"}
    assert places["flash"].settings is None and "replaced" in places["flash"].skipped
    assert places["cuda_graphs"].previous == places["all"].settings
    few = in_order(["bf16", "compile", "cudnn_attention", "cuda_graphs"])
    places = {p.label: p for p in derive("leave-one-out", few, H100, GPU_WORKLOAD)}
    assert places["bf16"].settings.id == "compile+cuda_graphs"
    assert places["compile"].settings.id == "bf16+cudnn_attention"


def test_choices_put_every_other_rung_into_its_slot() -> None:
    places = {p.label: p for p in derive("choices", DEFAULT, H100, GPU_WORKLOAD)}
    top = set(places["all"].settings.rungs)
    assert [label for label in places if places[label].settings] == [
        "all", "bf16", "no precision", "compile", "no compiler", "efficient_attention", "flash", "flex_attention",
        "triton_attention", "no attention", "fused_adamw", "no optimizer",
    ]  # fmt: skip
    assert set(places["flash"].settings.rungs) == top - {"cudnn_attention"} | {"flash"}
    assert set(places["compile"].settings.rungs) == top - {"max_autotune"} | {"compile"}
    assert set(places["no compiler"].settings.rungs) == top - {"max_autotune", "cuda_graphs"}
    in_fp32 = top - {"bf16_weights", "cudnn_attention"} | {"triton_attention"}
    assert set(places["no precision"].settings.rungs) == in_fp32  # what lacks its need gives way to the next
    assert "this device has bf16" in places["fp16"].skipped and places["fp16"].settings is None
    assert {p.previous for label, p in places.items() if p.settings and label != "all"} == {places["all"].settings}
    assert places["flash"].title == "with flash attention (SDPA)" and places["no optimizer"].title == "with no optimizer rung"


def test_where_there_is_no_choice_there_is_none() -> None:
    places = {p.label: p for p in derive("choices", DEFAULT, CPU, CPU_WORKLOAD)}
    measured = [label for label, p in places.items() if p.settings]
    assert measured == ["all", "bf16", "no precision", "compile", "no compiler"]
    assert "no attention" not in places and "flash" not in places  # on a processor there is one
    alone = derive("choices", in_order(["bf16", "compile", "flash"]), H100, GPU_WORKLOAD)
    assert [p.label for p in alone] == ["all"]


def test_a_need_that_only_a_later_rung_meets_is_waited_for() -> None:
    chosen = in_order(["compile", "cudnn_attention", "bf16_weights"])
    assert rungs_of(derive("cumulative", chosen, H100, GPU_WORKLOAD)) == [
        "", "compile", "compile+bf16_weights", "compile+cudnn_attention+bf16_weights",
    ]  # fmt: skip
    assert climb(chosen, H100, GPU_WORKLOAD)[1] == {}
    unmet = in_order(["compile", "cudnn_attention", "fused_adamw"])
    assert rungs_of(derive("cumulative", unmet, H100, GPU_WORKLOAD)) == [
        "", "compile", "(cudnn_attention)", "compile+fused_adamw",
    ]  # fmt: skip
    assert climbing_order(LADDER) == list(LADDER)  # on the whole ladder nothing waits


def test_scaling_goes_up_to_the_devices_there_are() -> None:
    places = derive("scaling", DEFAULT, gpu("NVIDIA H100 80GB HBM3", (9, 0), count=4), GPU_WORKLOAD)
    assert [p.settings.workload.world_size for p in places] == [1, 2, 4]
    assert ["ddp" in p.settings.rungs for p in places] == [False, True, True]
    six = derive("scaling", DEFAULT, gpu("NVIDIA H100 80GB HBM3", (9, 0), count=6), GPU_WORKLOAD)
    assert [p.label for p in six] == ["1", "2", "4", "6"]
    many_cores = derive("scaling", DEFAULT, replace(CPU, count=64), CPU_WORKLOAD)
    assert [p.label for p in many_cores] == ["1", "2"]
    alone = derive("scaling", DEFAULT, H100, GPU_WORKLOAD)
    assert alone[1].skipped == "needs 2 GPUs; this machine has 1"
    two_cores = derive("scaling", DEFAULT, CPU, CPU_WORKLOAD)
    assert two_cores[1].settings.id.endswith("ddp@2")


def test_climbing_over_slots_holds_one_rung_each() -> None:
    for device in (H100, T4, CPU):
        active, _ = climb([r for r in LADDER if not r.scaling], device, GPU_WORKLOAD)
        slots = [r.slot for r in active if r.slot]
        assert len(slots) == len(set(slots))
        Settings(workload=GPU_WORKLOAD, rungs=tuple(r.name for r in active))  # passes its own checks


def test_rungs_that_stand_aside_are_measured_where_they_are_named() -> None:
    assert [r.name for r in LADDER if r not in DEFAULT] == [r.name for r in LADDER if r.aside] != []
    chosen = in_order(["bf16", "triton_cross_entropy", "chunked_cross_entropy"])
    assert rungs_of(derive("cumulative", chosen, H100, GPU_WORKLOAD)) == [
        "", "bf16", "bf16+triton_cross_entropy", "bf16+chunked_cross_entropy",
    ]  # fmt: skip
    chosen = in_order(["triton_mlp", "triton_bias_gelu"])
    assert rungs_of(derive("cumulative", chosen, H100, GPU_WORKLOAD)) == ["", "triton_bias_gelu", "triton_mlp"]


def test_kernels_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rung("triton_adamw").unavailable(H100, replace(GPU_WORKLOAD, model="char-bigram")) is None
    assert "compute capability 8.0 or newer" in rung("triton_adamw").unavailable(T4, GPU_WORKLOAD)
    for name in ("triton_layer_norm", "triton_mlp", "triton_bias_gelu"):
        assert rung(name).unavailable(H100, GPU_WORKLOAD) is None
        assert "no transformer blocks" in rung(name).unavailable(H100, replace(GPU_WORKLOAD, model="char-bigram"))
    reason = rung("triton_cross_entropy").unavailable
    assert reason(H100, GPU_WORKLOAD) is None
    assert "compute capability 8.0 or newer" in reason(T4, GPU_WORKLOAD)
    assert "no output head" in reason(H100, replace(GPU_WORKLOAD, model="char-bigram"))
    monkeypatch.setattr("kernels.shutil.which", lambda name: None)
    assert reason(H100, GPU_WORKLOAD).startswith("needs a C compiler")
    monkeypatch.setattr("kernels.find_spec", lambda name: None)
    assert reason(H100, GPU_WORKLOAD) == "needs the package triton, which is not installed"


def test_the_attention_kernel_says_what_it_cannot_do() -> None:
    reason = rung("triton_attention").unavailable
    assert reason(H100, GPU_WORKLOAD) is None
    assert "no attention" in reason(H100, replace(GPU_WORKLOAD, model="char-bigram"))
    assert "no dropout" in reason(H100, replace(GPU_WORKLOAD, dropout=0.1))
    assert reason(H100, replace(GPU_WORKLOAD, model="stories")).endswith("32, 64, 128; this model has 192")


def test_other_rungs_say_what_they_need() -> None:
    efficient = rung("efficient_attention").unavailable
    assert efficient(H100, GPU_WORKLOAD) is None and efficient(T4, GPU_WORKLOAD) is None
    assert "NVIDIA GPUs" in efficient(CPU, CPU_WORKLOAD)
    assert "no attention" in efficient(H100, replace(GPU_WORKLOAD, model="char-bigram"))
    assert rung("max_autotune").unavailable is rung("compile").unavailable


def test_in_order_drops_duplicates() -> None:
    assert [r.name for r in in_order(["flash", "bf16", "flash"])] == ["bf16", "flash"]
