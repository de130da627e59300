"""What one optimization is: a name, a reason, and the few places where it changes how training is set up.

A rung fills in only the hooks it needs; every other hook changes nothing. `build` folds the hooks of all rungs phase by
phase, in ladder order, so the order in which a user named the rungs cannot matter:

    process -> model_config -> (model is made) -> convert -> (moved to the device) -> optimizer -> parallel -> compile
    and around every forward pass: forward
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from hardware import Device
from model import GPT2Config

if TYPE_CHECKING:
    from optim_ladder.settings import Workload


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a setting may stray from true fp32 over the parity run and still count as the same training.

    Args:
        loss: largest difference of the training loss in any step, nats.
        gradient: largest relative error of any parameter's gradient in the first step.
        norm: largest relative error of the whole gradient's norm in any step.
    """

    loss: float
    gradient: float
    norm: float


# fp32 arithmetic done in another order. Measured on a CPU: 1e-6, 1e-6 and 1e-7 (LOG.md); two decades are left for others.
REORDERED = Drift(loss=2e-4, gradient=1e-3, norm=2e-4)


def _nothing(*_: object) -> AbstractContextManager:
    return nullcontext()


def _unchanged(value, *_: object):
    return value


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One optimization.

    Args:
        name: flag name, lower_snake_case.
        title: chart label.
        source: where the idea comes from, a URL or a paper.
        essay: why it is faster, when it can be used, what it costs; the rung file's docstring.
        drift: what it may change, see `Drift`.
        needs: rungs that must be on too. A need is also met by a rung that took over the named rung's slot.
        slot: rungs of one slot exclude each other; on a ladder the later one takes over.
        precision: what matrix products compute in once it is on ("tf32", "bf16", …); None leaves it as it was.
        quantised: matrix products run below 16 bits, so a 16-bit MFU would be meaningless.
        scaling: it spreads one step over processes; charted as scaling, apart from the ladder.
        aside: it buys something else than speed, or loses on most devices: used only where it is named.
        gradient_scaling: the loss is scaled up before backward and the gradients down after, to survive fp16's range.
        bf16_weights: the optimizer keeps the weights in fp32, and those of the model are their rounding to bfloat16.
        unavailable: (device, workload) -> None, or the reason it cannot run there, in words a user understands.
        process: device -> context manager for process-wide flags; what it sets it restores.
        model_config: changes the model's configuration before the model exists.
        convert: changes the module after it is made.
        optimizer: keywords for `torch.optim.AdamW`.
        make_optimizer: (groups, lr=, betas=, eps=) -> an AdamW, instead of PyTorch's; None leaves it as it was.
            One that has a method ``clip_grad_norm_(max_norm)`` clips the gradient in its own way. With ``bf16_weights``
            it is told ``bf16_shadow=True`` too.
        forward: device -> context manager around every forward pass.
        parallel: (module, device) -> the module spread over processes.
        compile: module -> the compiled module, or a function that calls it.
    """

    name: str
    title: str
    source: str
    essay: str
    drift: Drift
    needs: tuple[str, ...] = ()
    slot: str | None = None
    precision: str | None = None
    quantised: bool = False
    scaling: bool = False
    aside: bool = False
    gradient_scaling: bool = False
    bf16_weights: bool = False
    unavailable: Callable[[Device, "Workload"], str | None] = lambda device, workload: None
    process: Callable[[Device], AbstractContextManager] = _nothing
    model_config: Callable[[GPT2Config], GPT2Config] = _unchanged
    convert: Callable[[nn.Module], nn.Module] = _unchanged
    optimizer: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    make_optimizer: Callable[..., Optimizer] | None = None
    forward: Callable[[Device], AbstractContextManager] = _nothing
    parallel: Callable[[nn.Module, Device], nn.Module] = _unchanged
    compile: Callable[[nn.Module], Callable] = _unchanged
