"""The rungs that multiply in fp8: where they run, what they switch on, and that training stays training.

No processor has fp8 arithmetic, so the rungs refuse one; what they compute is the same numbers there, and twenty steps
of it are held to their bounds.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.parity import OPTIMIZER, compare, trajectory
from hardware import Device, detect
from kernels import fp8
from model import MODELS, GPT2Config, gpt2
from optim_ladder import LADDER, Settings, TrainStep, Workload, derive, in_order, rung
from optim_ladder.build import build
from results.schema import Parity
from tests.bench import planted
from tests.optim_ladder.devices import CPU, H100, T4, gpu

NAMES = ("fp8", "fp8_static")
GPU_WORKLOAD = Workload(micro_batch=64)
WORKLOAD = Workload(model="pico", vocab_size=211, micro_batch=2, seq_len=32)
HERE = detect() if detect().supports("fp8") else detect("cpu")
MPS = Device(kind="mps", name="Apple M3", slug="mps-apple-m3", memory_bytes=2**34, capability=None, count=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (H100, None),
        (gpu("NVIDIA L4", (8, 9), memory_gib=24), None),
        (gpu("NVIDIA B200", (10, 0), memory_gib=180), None),
        (gpu("NVIDIA GeForce RTX 5090", (12, 0), memory_gib=32), None),
        (gpu("NVIDIA A100-SXM4-80GB", (8, 0)), "this GPU has no fp8 arithmetic (compute capability 8.9 or newer has)"),
        (T4, "this GPU has no fp8 arithmetic (compute capability 8.9 or newer has)"),
        (CPU, "needs an NVIDIA GPU: elsewhere fp8 arithmetic would only be imitated"),
        (MPS, "needs an NVIDIA GPU: elsewhere fp8 arithmetic would only be imitated"),
    ],
    ids=lambda d: d.name if isinstance(d, Device) else "",
)
def test_where_they_run(device: Device, reason: str | None, name: str) -> None:
    assert rung(name).unavailable(device, GPU_WORKLOAD) == reason


@pytest.mark.parametrize("name", NAMES)
def test_which_models_they_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = rung(name).unavailable
    assert "neither MLP nor output head" in reason(H100, replace(GPU_WORKLOAD, model="char-bigram"))
    for model, config in MODELS.items():
        if isinstance(config, GPT2Config):
            assert reason(H100, replace(GPU_WORKLOAD, model=model)) is None
    monkeypatch.setitem(MODELS, "pico", GPT2Config(n_embd=24, n_head=2))
    assert reason(H100, replace(GPU_WORKLOAD, model="pico")) == "fp8 needs a multiple of 16 channels; this model has 24"


@pytest.mark.parametrize("name", NAMES)
def test_mlp_and_head_are_switched_together_and_the_table_is_padded(name: str) -> None:
    config = rung(name).model_config(GPT2Config())
    assert (config.mlp, config.head, config.rows, config.vocab_size) == (name, name, 50272, 50257)
    assert rung(name).model_config(rung("padded_vocab").model_config(GPT2Config())).rows == 50304
    assert rung(name).model_config(GPT2Config(vocab_size=8192)).rows == 8192
    assert rung(name).model_config(GPT2Config(loss="chunked")).loss == "chunked"  # any loss, the logits from fp8


def test_no_mfu_in_16_bits_is_claimed() -> None:
    for name in NAMES:
        settings = Settings(workload=GPU_WORKLOAD, rungs=("bf16", name))
        assert settings.quantised and settings.precision == "bf16"


def test_there_is_one_mlp() -> None:
    with pytest.raises(ValueError, match=r"rungs 'triton_mlp' and 'fp8' exclude each other \(mlp\)"):
        Settings(workload=GPU_WORKLOAD, rungs=("bf16", "triton_mlp", "fp8"))
    with pytest.raises(ValueError, match=r"rungs 'fp8' and 'fp8_static' exclude each other \(mlp\)"):
        Settings(workload=GPU_WORKLOAD, rungs=("bf16", "fp8", "fp8_static"))
    with pytest.raises(ValueError, match="rung 'fp8' needs 'bf16'"):
        Settings(workload=GPU_WORKLOAD, rungs=("fp8",))


def test_on_a_ladder_the_later_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.find_spec", lambda name: object())
    monkeypatch.setattr("kernels.shutil.which", lambda name: f"/usr/bin/{name}")
    rungs = in_order(["bf16", "triton_mlp", "chunked_cross_entropy", "fp8", "fp8_static"])
    places = derive("cumulative", rungs, H100, GPU_WORKLOAD)
    assert [p.settings.id for p in places] == [
        "baseline", "bf16", "bf16+chunked_cross_entropy", "bf16+chunked_cross_entropy+triton_mlp",
        "bf16+chunked_cross_entropy+fp8", "bf16+chunked_cross_entropy+fp8_static",
    ]  # fmt: skip
    without = {p.label: p.settings for p in derive("leave-one-out", rungs, H100, GPU_WORKLOAD) if p.settings}
    assert without["fp8_static"].rungs == ("bf16", "chunked_cross_entropy", "fp8")
    assert without["bf16"].rungs == ("chunked_cross_entropy", "triton_mlp")  # what needs it goes along


def test_training_with_them_on_a_processor_is_an_error() -> None:
    with pytest.raises(ValueError, match="rung 'fp8' cannot run on .*only be imitated; leave it out"):
        build(Settings(workload=WORKLOAD, rungs=("bf16", "fp8")), CPU)


def batches(num_steps: int) -> list:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(WORKLOAD.vocab_size, (num_steps, 2, WORKLOAD.seq_len + 1), generator=generator)
    return [[(t[:, :-1].to(HERE.torch_device()), t[:, 1:].to(HERE.torch_device()))] for t in tokens]


def parity(*rungs: str, num_steps: int = 20) -> Parity:
    """Against fp32; `TrainStep` itself, because `build` would refuse a processor."""
    trajectories = []
    for names in ((), rungs):
        with TrainStep(Settings(workload=WORKLOAD, rungs=names), HERE, optimizer=OPTIMIZER) as step:
            trajectories.append(trajectory(step, batches(num_steps)))
    return compare(trajectories[1], trajectories[0], Settings(workload=WORKLOAD, rungs=rungs).drift)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("others", [("bf16",), ("bf16_weights",), ("bf16", "checkpointing")], ids="+".join)
def test_twenty_steps_are_the_same_training(others: tuple[str, ...], name: str) -> None:
    """With the vocabulary of 211 padded to 224."""
    found = parity(*others, name)
    assert found.passed and found.steps == 20, found.reason
    assert found.gradient_drift > 2 * parity(*others, num_steps=1).gradient_drift  # it is indeed on


@pytest.mark.parametrize("fault", [name for name in planted.WRONG if name != "all_one_percent_off"])
def test_planted_faults_are_caught_within_its_bounds(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a gradient 1 % off, which bf16, one rung below, must not let through."""
    monkeypatch.setattr("optim_ladder.ladder.LADDER", (*LADDER, *planted.PLANTED))
    monkeypatch.setitem(MODELS, WORKLOAD.model, replace(MODELS[WORKLOAD.model], n_layer=3))  # one is in the third
    assert not parity("bf16", "fp8", fault).passed


def test_the_model_compiles_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without its C++: that is not what will run."""
    monkeypatch.setitem(MODELS, WORKLOAD.model, replace(MODELS[WORKLOAD.model], n_layer=1))
    backend = "inductor" if HERE.kind == "cuda" else "aot_eager"
    results = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, fullgraph=True, backend=backend)):
        with TrainStep(Settings(workload=WORKLOAD, rungs=("bf16", "fp8")), HERE, optimizer=OPTIMIZER) as step:
            step.module = wrap(step.model)
            results.append([step(micro_batches) for micro_batches in batches(3)])
    for (loss, norm), (expected, expected_norm) in zip(*results, strict=True):
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-2)
        torch.testing.assert_close(norm, expected_norm, rtol=1e-2, atol=0)


FAULTS: dict[str, Callable] = {
    "numbers cut off": lambda scales: replace(scales, activation=2.0**-9),
    "weights cut off": lambda scales: replace(scales, weight=2.0**-14),
    "weights lost": lambda scales: replace(scales, weight=2.0**5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fixed_scales_that_do_not_fit_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = FAULTS[fault](fp8.STATIC)
    monkeypatch.setitem(gpt2.MLPS, "fp8_static", lambda *arguments: gpt2.fp8_mlp(*arguments, scales=wrong))
    monkeypatch.setitem(gpt2.HEADS, "fp8_static", wrong)
    assert not parity("bf16", "fp8_static", num_steps=3).passed
