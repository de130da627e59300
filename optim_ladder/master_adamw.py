"""PyTorch's AdamW for a model in bfloat16: the optimizer keeps every weight in fp32, the model its rounding.

A bfloat16 has 8 bits. An update is a thousandth of its weight or less, so added to a bfloat16 it would mostly be
rounded away. Here it is added to the fp32 master, and the weight is the master rounded anew.
`kernels.flat_adamw.FlatAdamW` does the same with ``bf16_shadow=True``; this is the same interface around any form of
`torch.optim.AdamW`.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, nn


def adamw(params: Iterable, *, bf16_shadow: bool = False, **keywords: object) -> torch.optim.Optimizer:
    """`torch.optim.AdamW`, over fp32 masters where the parameters are to be bfloat16.

    Args:
        params: float32 parameters, or groups of them as `torch.optim` takes them.
        bf16_shadow: the parameters become bfloat16, see `MasterAdamW`.
        **keywords: of `torch.optim.AdamW`.
    """
    return (MasterAdamW if bf16_shadow else torch.optim.AdamW)(params, **keywords)


class MasterAdamW(torch.optim.Optimizer):
    """AdamW over float32 masters; the parameters become bfloat16, and so do their gradients.

    The parameters' data is replaced: make it after the model has been moved to its device, and before anything takes
    the parameters' addresses.

    Args:
        params: float32 parameters, or groups of them as `torch.optim` takes them.
        **keywords: of `torch.optim.AdamW`, ``foreach`` and ``fused`` among them; groups are read in every step.

    Attributes:
        state: by parameter ``"master"``, and after the first step what `torch.optim.AdamW` keeps, in float32.

    Raises:
        ValueError: a parameter is not float32, or a number is out of its range.
    """

    def __init__(self, params: Iterable, **keywords: object) -> None:
        super().__init__(params, keywords)
        self.parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        if wrong := [p.dtype for p in self.parameters if p.dtype != torch.float32]:
            raise ValueError(f"a parameter is {wrong[0]}; all must be torch.float32, which the masters are made from")
        self.masters = [p.detach().clone() for p in self.parameters]
        rest = iter(self.masters)
        groups = [{**group, "params": list(islice(rest, len(group["params"])))} for group in self.param_groups]
        self.inner = torch.optim.AdamW(groups, **keywords)
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours.update({**theirs, "params": ours["params"]})
        for p, master in zip(self.parameters, self.masters, strict=True):
            self.state[p]["master"] = master
            p.data = master.bfloat16()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` in float32, for the next `step`: ``.grad`` itself stays unclipped.

        Returns:
            The norm before clipping, float32 without a shape, on the device.
        """
        self._take_gradients()
        return nn.utils.clip_grad_norm_(self.masters, max_norm, foreach=self.inner.defaults["foreach"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of the masters, and of the parameters after them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if all(master.grad is None for master in self.masters):  # else clipping has taken them
            self._take_gradients()
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update({**ours, "params": theirs["params"]})
        self.inner.step()
        self.inner.zero_grad()
        self._publish()
        return loss

    def add_param_group(self, param_group: dict) -> None:
        """As in `torch.optim`, but only while it is being made."""
        if hasattr(self, "masters"):
            raise ValueError("a group cannot be added once there are masters; make the optimizer again with all groups")
        super().add_param_group(param_group)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Takes over groups and state, its own or `torch.optim.AdamW`'s; without a master, it is the parameter."""
        saved = [state_dict["state"].get(i, {}) for group in state_dict["param_groups"] for i in group["params"]]
        moments = {i: {k: v for k, v in s.items() if k != "master"} for i, s in state_dict["state"].items()}
        self.inner.load_state_dict({**state_dict, "state": moments})  # which checks the groups
        super().load_state_dict({**state_dict, "state": {}})
        for p, master, theirs in zip(self.parameters, self.masters, saved, strict=True):
            master.copy_(theirs.get("master", p))
        self._publish()

    def _take_gradients(self) -> None:
        """The parameters' gradients, widened, become the masters'."""
        pairs = zip(self.masters, self.parameters, strict=True)
        having = [(master, p.grad) for master, p in pairs if p.grad is not None]
        for master, _ in having:
            master.grad = torch.empty_like(master)
        if having:
            torch._foreach_copy_([master.grad for master, _ in having], [gradient for _, gradient in having])

    def _publish(self) -> None:
        """What the masters have become, for the model and for whoever looks at the state."""
        torch._foreach_copy_(self.parameters, self.masters)
        for p, master in zip(self.parameters, self.masters, strict=True):
            self.state[p] = {**self.inner.state[master], "master": master}
