"""What `build` makes of settings: the same training as plain PyTorch, and flags put back."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from hardware import Device, detect
from model import GPT2
from optim_ladder import LADDER, OptimizerConfig, Settings, Workload, build, rung
from optim_ladder.build import decay_groups

CPU = detect("cpu")
DEVICES = [CPU, *([detect("cuda")] if torch.cuda.is_available() else [])]
WORKLOAD = Workload(model="nano", vocab_size=67, micro_batch=2, seq_len=24)


def batch(rows: int = 2, seed: int = 0, target: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(67, (rows, 25), generator=torch.Generator().manual_seed(seed)).to(target)
    return tokens[:, :-1], tokens[:, 1:]


def weights(model: GPT2) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_step_is_plain_pytorch() -> None:
    """The baseline against the training loop anyone would write, number for number."""
    config = OptimizerConfig()
    torch.manual_seed(7)
    model = GPT2(WORKLOAD.model_config())
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=6e-4, betas=(0.9, 0.95), eps=1e-8, foreach=False,
    )  # fmt: skip
    with build(Settings(workload=WORKLOAD), CPU, seed=7, optimizer=config) as step:
        for i in range(3):
            idx, targets = batch(seed=i)
            loss, norm = step([(idx, targets)])
            expected = model(idx, targets)
            expected.backward()
            expected_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
            optimizer.step()
            optimizer.zero_grad()
            assert loss.item() == expected.item()
            assert norm.item() == expected_norm.item()
        assert torch.equal(weights(step.model), weights(model))


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.kind)
@pytest.mark.parametrize("name", [r.name for r in LADDER if not r.scaling and r.slot != "compiler"])
def test_each_rung_trains_or_says_why_not(name: str, device: Device) -> None:
    """Loss falls on one repeated batch; what the device cannot do is an error that names the rung and the reason."""
    rung = next(r for r in LADDER if r.name == name)
    settings = Settings(workload=WORKLOAD, rungs=(*rung.needs, name))
    if rung.unavailable(device, WORKLOAD):
        with pytest.raises(ValueError, match=f"rung '{name}' cannot run on .*; leave it out"):
            build(settings, device)
        return
    with build(settings, device) as step:
        losses = [float(step([batch(target=step.target)])[0]) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_fp16_scales_the_loss_and_unscales_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(CPU), "supports", lambda self, dtype: dtype != "bf16")
    with build(Settings(workload=WORKLOAD, rungs=("fp16",)), CPU) as step, build(Settings(workload=WORKLOAD), CPU) as plain:
        assert step.scaler.is_enabled() and step.scaler.get_scale() == 4096
        for i in range(3):
            (loss, norm), (expected, expected_norm) = step([batch(seed=i)]), plain([batch(seed=i)])
            assert loss.item() == pytest.approx(expected.item(), abs=5e-3)
            assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-2)
        before = weights(step.model)
        step.scaler.update(2.0**40)  # far above fp16's range: the gradients overflow
        step([batch()])
        assert torch.equal(weights(step.model), before)  # the step was skipped
        assert step.scaler.get_scale() < 2.0**40


def test_accumulating_equals_one_large_batch() -> None:
    idx, targets = batch(rows=4)
    with build(Settings(workload=replace(WORKLOAD, micro_batch=4)), CPU) as large:
        loss, norm = large([(idx, targets)])
    with build(Settings(workload=replace(WORKLOAD, grad_accumulation=2)), CPU) as small:
        loss_2, norm_2 = small([(idx[:2], targets[:2]), (idx[2:], targets[2:])])
    torch.testing.assert_close(loss_2, loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(norm_2, norm, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights(small.model), weights(large.model), atol=1e-5, rtol=0)


def test_process_wide_flags_are_put_back_even_after_a_failure() -> None:
    def flags() -> tuple:
        return (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.get_float32_matmul_precision(),
            torch.random.get_rng_state().tolist(),
        )

    before = flags()
    settings = Settings(workload=WORKLOAD, rungs=("flash",))
    with build(settings, CPU):
        assert not torch.backends.cuda.math_sdp_enabled()
    assert flags() == before
    broken = OptimizerConfig(learning_rate=-1.0)
    with pytest.raises(ValueError, match="learning rate"):
        build(settings, CPU, optimizer=broken)
    assert flags() == before


def test_tf32_is_switched_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(CPU), "supports", lambda self, dtype: True)
    assert torch.get_float32_matmul_precision() == "highest"
    with build(Settings(workload=WORKLOAD, rungs=("tf32",)), CPU):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_only_matrices_are_decayed() -> None:
    decayed, spared = decay_groups(GPT2(WORKLOAD.model_config()), 0.1)
    assert decayed["weight_decay"] == 0.1 and {p.dim() for p in decayed["params"]} == {2}
    assert spared["weight_decay"] == 0.0 and {p.dim() for p in spared["params"]} == {1}


class Recorded(torch.optim.SGD):
    """An optimizer that clips in its own way, and notes what it is asked."""

    def __init__(self, groups: list[dict], **numbers: object) -> None:
        super().__init__(groups)
        self.numbers, self.asked = numbers, []

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        self.asked.append(max_norm)
        return torch.tensor(42.0)

    def step(self) -> None:
        self.asked.append("step")


def test_a_rung_may_bring_an_optimizer_that_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(rung("fused_adamw"), name="recorded", optimizer={}, make_optimizer=Recorded)
    monkeypatch.setattr("optim_ladder.ladder.LADDER", (other, *LADDER))
    config = OptimizerConfig(learning_rate=1e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2, clip=0.5)
    with build(Settings(workload=WORKLOAD, rungs=("recorded",)), CPU, optimizer=config) as step:
        assert step.optimizer.numbers == {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6}
        assert [group["weight_decay"] for group in step.optimizer.param_groups] == [0.2, 0.0]
        assert step([batch()])[1] == 42.0
        assert step.optimizer.asked == [0.5, "step"]
        assert all(p.grad is None for p in step.model.parameters())


def test_rungs_do_not_change_the_initial_weights() -> None:
    with build(Settings(workload=WORKLOAD), CPU) as plain:
        expected = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    with build(Settings(workload=WORKLOAD, rungs=("bf16", "flash", "padded_vocab", "fused_adamw")), CPU) as step:
        for name, p in step.model.named_parameters():
            assert torch.equal(p[: len(expected[name])], expected[name]), name


def test_the_first_loss_is_that_of_guessing() -> None:
    with build(Settings(workload=WORKLOAD), CPU) as step:
        assert float(step([batch()])[0]) == pytest.approx(math.log(67), abs=0.2)


def test_compiled_training_is_the_same_and_kernels_are_kept_apart_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two rungs that differ in a process-wide flag alone trace to one graph; the second must not find the first's code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    settings = Settings(workload=WORKLOAD, rungs=("compile", "flash"))
    hits = torch._dynamo.utils.counters["aot_autograd"]

    def first_steps() -> tuple[list[float], int]:
        torch._dynamo.reset()
        hits.clear()
        with build(settings, CPU) as step:
            return [float(step([batch(seed=i)])[0]) for i in range(3)], hits["autograd_cache_hit"]

    with build(Settings(workload=WORKLOAD), CPU) as step:
        expected = [float(step([batch(seed=i)])[0]) for i in range(3)]
    cold, again = first_steps(), first_steps()
    assert cold[0] == pytest.approx(expected, abs=1e-5)
    assert (cold[1], again[1]) == (0, 1)  # the disk cache works at all
    other = replace(rung("flash"), name="flash_elsewhere", process=lambda device: nullcontext())
    monkeypatch.setattr("optim_ladder.ladder.LADDER", (*LADDER, other))
    settings = Settings(workload=WORKLOAD, rungs=("compile", "flash_elsewhere"))
    assert first_steps()[1] == 0


def test_what_was_compiled_under_other_flags_is_not_taken_in_the_same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only traced: both trace to one graph, and a step closed is a step whose flags are gone."""
    other = replace(rung("flash"), name="flash_elsewhere", process=lambda device: nullcontext())
    eager = replace(rung("compile"), compile=partial(torch.compile, backend="eager"))
    ladder = tuple(eager if r.name == "compile" else r for r in (*LADDER, other))
    monkeypatch.setattr("optim_ladder.ladder.LADDER", ladder)
    graphs = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    graphs.clear()
    for number, attention in enumerate(("flash", "flash_elsewhere"), 1):
        with build(Settings(workload=WORKLOAD, rungs=("compile", attention)), CPU) as step:
            for seed in range(2):
                step([batch(seed=seed)])
        assert graphs["unique_graphs"] == number


def test_fp32_is_true_fp32_whatever_the_environment_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with build(Settings(workload=WORKLOAD), CPU):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(ValueError, match="NVIDIA_TF32_OVERRIDE is '1'.*unset it"):
        build(Settings(workload=WORKLOAD), CPU)


def test_micro_batches_of_unequal_weight_are_one_mean_over_tokens() -> None:
    """Three sequences at once, against two and one weighted by their tokens, some of which do not count."""
    idx, targets = batch(rows=3)
    targets = targets.clone()
    targets[2, 10:] = -100
    counts = [int((t >= 0).sum()) for t in (targets[:2], targets[2:])]
    with build(Settings(workload=WORKLOAD), CPU) as whole, build(Settings(workload=WORKLOAD), CPU) as parts:
        loss, norm = whole([(idx, targets)])
        weighted = parts.backward(
            [(idx[:2], targets[:2]), (idx[2:], targets[2:])], weights=[c / sum(counts) for c in counts]
        )
        assert weighted.item() == pytest.approx(loss.item(), abs=1e-6)
        assert parts.update().item() == pytest.approx(norm.item(), rel=1e-5)


def test_dropout_follows_its_seed_and_rests_while_evaluating() -> None:
    with build(Settings(workload=replace(WORKLOAD, dropout=0.3)), CPU) as step:
        losses = [step.backward([batch()], seeds=[seed]).item() for seed in (1, 2, 1)]
        assert losses[0] == losses[2] != losses[1]
        with step.evaluating():
            first, again = step.forward(*batch()), step.forward(*batch())
        assert first.item() == again.item() and not first.requires_grad
        assert step.model.training
