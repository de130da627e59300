"""What a checkpoint holds of a training step: weights and AdamW's moments by the parameter's name, without vocabulary padding.

Names and shapes are those of the plain model, and weights are the optimizer's float32 ones where it keeps such, so that a run can go
on with other rungs. Random numbers need no state of their own: dropout is seeded from (seed, step, micro-batch), which is also what
makes it the same for any number of processes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from optim_ladder import TrainStep

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"  # where the model's weights are rounded ones: the exact one, in the optimizer's state
Tensors = dict[str, dict[str, Tensor]]


def pack(step: TrainStep) -> Tensors:
    """Weights and optimizer state, as ``{"model": {name: …}, "optimizer": {name.exp_avg: …, name.exp_avg_sq: …, name.step: …}}``.

    Tensors are views where they can be: write them before the next step.
    """
    model, optimizer = {}, {}
    for name, parameter in step.model.named_parameters():
        rows = _rows(step.model, name)
        kept = step.optimizer.state.get(parameter, {})
        model[name] = kept.get(MASTER, parameter).detach()[:rows]
        if "step" in kept:
            optimizer |= {f"{name}.{moment}": kept[moment][:rows] for moment in MOMENTS}
            optimizer[f"{name}.step"] = kept["step"].reshape(1)
        else:  # fp16's scaler has skipped every step so far: AdamW begins with zeros
            optimizer |= {f"{name}.{moment}": torch.zeros_like(model[name]) for moment in MOMENTS}
            optimizer[f"{name}.step"] = torch.zeros(1)
    return {"model": model, "optimizer": optimizer}


def template(step: TrainStep) -> Tensors:
    """Tensors on the CPU of the shapes that `pack` gives after the first step, their values undefined."""
    tensors: Tensors = {"model": {}, "optimizer": {}}
    for name, parameter in step.model.named_parameters():
        shape = parameter[: _rows(step.model, name)].shape
        tensors["model"][name] = torch.empty(shape)
        tensors["optimizer"] |= {f"{name}.{moment}": torch.empty(shape) for moment in MOMENTS}
        tensors["optimizer"][f"{name}.step"] = torch.empty(1)
    return tensors


def check_matches(step: TrainStep, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Makes sure that packed tensors are those of this model.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    expected = template(step)
    for part, theirs in expected.items():
        given = tensors.get(part, {})
        if difference := sorted(theirs.keys() ^ given.keys()):
            raise ValueError(f"the checkpoint's {part} and this model differ in {difference[0]!r}; use the run's own recipe")
        for name, tensor in theirs.items():
            if given[name].shape != tensor.shape:
                shapes = f"{tuple(given[name].shape)}, this model's {tuple(tensor.shape)}"
                raise ValueError(f"the checkpoint's {part} tensor {name!r} is {shapes}; use the run's own recipe")


@torch.no_grad()
def unpack(step: TrainStep, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Puts packed tensors back; padding rows become zero, which is what they always are.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    check_matches(step, tensors)
    state = step.optimizer.state_dict()
    names = {id(parameter): name for name, parameter in step.model.named_parameters()}
    order = [names[id(p)] for group in step.optimizer.param_groups for p in group["params"]]
    parameters, moments, state["state"] = dict(step.model.named_parameters()), tensors["optimizer"], {}
    for i, name in enumerate(order):
        parameter = parameters[name]
        weight = _padded(tensors["model"][name], parameter)
        kept = {moment: _padded(moments[f"{name}.{moment}"], parameter) for moment in MOMENTS}
        kept["step"] = moments[f"{name}.step"].reshape(()).clone()
        if MASTER in step.optimizer.state.get(parameter, {}):
            kept[MASTER] = weight
        state["state"][i] = kept
        parameter.copy_(weight)
    step.optimizer.load_state_dict(state)


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of one micro-batch's random numbers.

    Args:
        seed: of the run.
        step: optimizer steps taken before.
        micro_batch: its number within the step, counted over all processes.
    """
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> 1)


def _rows(model: nn.Module, name: str) -> int | None:
    """Rows of a tensor that count: the embedding's padding rows do not."""
    return model.config.vocab_size if name == "wte.weight" else None


def _padded(tensor: Tensor, parameter: Tensor) -> Tensor:
    tensor = tensor.to(parameter.device)
    if tensor.shape == parameter.shape:
        return tensor.clone()
    return torch.cat([tensor, tensor.new_zeros(parameter.shape[0] - tensor.shape[0], *parameter.shape[1:])])
