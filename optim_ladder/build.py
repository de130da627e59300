"""From `Settings` to something that trains: the only interpreter of rungs.

Benchmarks and training call the same `build`, so a number in a chart is the number of a run that can be started.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.compiler.config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hardware import Device
from model import create
from optim_ladder.ladder import rung
from optim_ladder.master_adamw import adamw
from optim_ladder.rung import Rung
from optim_ladder.settings import Settings


FUSED_ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as GPT-2's reproductions use it.

    Args:
        learning_rate: step size; a schedule may change it per step on `TrainStep.optimizer`.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, on tensors of two dimensions or more; biases and norms are not decayed.
        clip: largest norm of the whole gradient.

    Source: Brown et al., "Language Models are Few-Shot Learners" (2020), appendix B.
    """

    learning_rate: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0


class TrainStep:
    """One optimizer step, made by `build`; a context manager that restores process-wide flags when it closes.

    Attributes:
        model: the plain module, whose parameters are trained, whatever wraps it.
        optimizer: AdamW over its parameters.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        *,
        seed: int = 1337,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        config = optimizer or OptimizerConfig()
        rungs = settings.active
        self.settings, self.device, self.clip = settings, device, config.clip
        self.contexts = [r.forward for r in rungs]
        self._process = ExitStack()
        with ExitStack() as undo:  # a failure half-way restores what was already set
            undo.callback(self._process.close)
            self.target = device.torch_device(int(os.environ.get("LOCAL_RANK", 0)))
            if device.kind == "cuda":  # events, synchronisation and NCCL act on the current device
                torch.cuda.set_device(self.target)
            self._process.enter_context(true_fp32())
            for r in rungs:
                self._process.enter_context(r.process(device))
            self._process.enter_context(compiled_code_of(settings.rungs))
            self.model = self._make_model(seed)
            keywords: dict[str, object] = {"foreach": False}
            for r in rungs:
                keywords |= r.optimizer
            make_optimizer = partial(adamw, **keywords)
            for r in rungs:
                make_optimizer = r.make_optimizer or make_optimizer
            if any(r.bf16_weights for r in rungs):
                make_optimizer = partial(make_optimizer, bf16_shadow=True)
            self.foreach = keywords["foreach"]
            self.optimizer = make_optimizer(
                decay_groups(self.model, config.weight_decay),
                lr=config.learning_rate,
                betas=config.betas,
                eps=config.eps,
            )
            self.scaler = torch.amp.GradScaler(
                device.kind, init_scale=2.0**12, enabled=any(r.gradient_scaling for r in rungs)
            )
            self.module: nn.Module = self.model
            for r in rungs:
                self.module = r.parallel(self.module, device)
            self.synchronised = self.module  # the wrapper that averages gradients, below the compiler
            for r in rungs:
                self.module = r.compile(self.module)
            undo.pop_all()

    def _make_model(self, seed: int) -> nn.Module:
        model_config = self.settings.workload.model_config()
        for r in self.settings.active:
            model_config = r.model_config(model_config)
        with torch.random.fork_rng(devices=[]):  # the same weights on every device: drawn on the CPU
            torch.manual_seed(seed)
            model = create(model_config)
        for r in self.settings.active:
            model = r.convert(model)
        return model.to(self.target).train()

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Loss of one micro-batch under every rung's context.

        Args:
            idx: (B, T) int64 on `target`.
            targets: (B, T) int64.

        Returns:
            Mean cross-entropy in nats, float32.
        """
        with self.precision():
            return self.module(idx, targets)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Every rung's context around a forward pass."""
        with ExitStack() as stack:
            for context in self.contexts:
                stack.enter_context(context(self.device))
            yield

    def backward(
        self,
        batches: Sequence[tuple[Tensor, Tensor]],
        *,
        weights: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Gradients of the weighted loss over the micro-batches, left in ``.grad``; processes synchronise once, at the end.

        Args:
            batches: one (idx, targets) per gradient accumulation.
            weights: of each micro-batch's mean loss; equal ones that sum to 1 by default. Processes average their
                gradients, so a mean over all tokens of all processes takes tokens / all tokens × world_size.
            seeds: of the random numbers in each micro-batch (dropout); by default the global generator just goes on.

        Returns:
            This process's weighted sum of losses in nats, float32, detached, on the device.
        """
        weights = weights or [1.0 / len(batches)] * len(batches)
        total = torch.zeros((), device=self.target)
        for i, (idx, targets) in enumerate(batches):
            last = i == len(batches) - 1
            if seeds is not None:
                torch.manual_seed(seeds[i])
            with nullcontext() if last or not hasattr(self.synchronised, "no_sync") else self.synchronised.no_sync():
                loss = self.forward(idx, targets) * weights[i]
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        return total

    def update(self) -> Tensor:
        """Clips the gradient, updates the parameters, clears the gradient.

        Returns:
            The gradient's norm before clipping, on the device.
        """
        if hasattr(self.optimizer, "clip_grad_norm_"):  # it will clip as it updates
            norm = self.optimizer.clip_grad_norm_(self.clip)
        else:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip, foreach=self.foreach)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def __call__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One optimizer step: (loss, gradient norm), both on the device, unsynchronised (but for fp16's check)."""
        return self.backward(batches), self.update()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and no gradients meanwhile; `forward`, compiled or not, works as in training."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The plain `model` ready to write text: its sequences grow, so it is not compiled, and any attention kernel may serve."""
        with self.evaluating(), self.precision(), sdpa_kernel([SDPBackend.MATH, *FUSED_ATTENTION]):
            yield

    def close(self) -> None:
        self._process.close()

    def __enter__(self) -> "TrainStep":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def true_fp32() -> Iterator[None]:
    """fp32 products in full precision unless a rung says otherwise, whatever the environment asked PyTorch for."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "0") != "0":
        raise ValueError(
            f"NVIDIA_TF32_OVERRIDE is {os.environ['NVIDIA_TF32_OVERRIDE']!r}, which turns fp32 into TF32 behind PyTorch's back; unset it"
        )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def compiled_code_of(rungs: Sequence[str]) -> Iterator[None]:
    """Keeps apart what was compiled under different process-wide flags, in this process and on disk.

    The compiler's caches do not know which attention kernel is allowed: a graph compiled under `flash` would be taken for
    `cudnn_attention`, and run FlashAttention under its name; nor does the one in memory know of CUDA graphs.
    """
    if any(rung(name).compile is not Rung.compile for name in rungs):
        torch.compiler.reset()
    before = torch.compiler.config.cache_key_tag
    torch.compiler.config.cache_key_tag = "+".join(name for name in rungs if rung(name).process is not Rung.process)
    try:
        yield
    finally:
        torch.compiler.config.cache_key_tag = before


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's parameter groups: matrices are decayed, biases and norms are not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build(
    settings: Settings,
    device: Device,
    *,
    seed: int = 1337,
    optimizer: OptimizerConfig | None = None,
) -> TrainStep:
    """A training step with exactly these rungs on.

    Args:
        settings: rungs and workload.
        device: where to run; under torchrun each process takes the one of its local rank.
        seed: of the weights, which are the same on every device and for every set of rungs.
        optimizer: AdamW's numbers; the default is GPT-2's.

    Raises:
        ValueError: a rung cannot run on this device; the message says why.
    """
    for r in settings.active:
        if reason := r.unavailable(device, settings.workload):
            raise ValueError(f"rung {r.name!r} cannot run on {device.name}: {reason}; leave it out")
    return TrainStep(settings, device, seed=seed, optimizer=optimizer)
