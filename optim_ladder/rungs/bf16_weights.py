"""Keep the model itself in bfloat16, and the exact weights in the optimizer.

Under autocast only the matrix products are in bf16: the residual stream between them, the norms and the embedding are
fp32, so between two products every number is read and written twice as wide as it needs to be, and every weight is
cast anew in every forward pass. Here all of it is bf16, and nothing is cast: weights, activations, gradients. Sums
inside a norm, a softmax and the loss are taken in fp32 as before. On eight H100 a step of 154.8 ms is reported to have
become one of 144.7.

What must not be rounded is what adds up over a run: an update is a thousandth of its weight, and bf16 has 8 bits. So
the optimizer holds an fp32 master of every weight, its moments in fp32, and after each step the model gets the
masters rounded. The gradient is clipped by its norm in fp32. Checkpoints hold the masters, so a run may go on with
this rung or without.

It costs little precision beside autocast's: the stream is rounded after each addition. Gradients are bf16 as well
where micro-batches and processes add theirs up: each addition is off by up to 0.2 % of the sum so far, at random,
which stays far below the noise of a batch.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from optim_ladder.rung import Rung
from optim_ladder.rungs import bf16


class LayerNorm(nn.LayerNorm):
    """PyTorch's, but on processors with sums in fp32, as elsewhere: there it adds up the gradients of bfloat16 weights
    in bfloat16, and over 512 tokens some come out a fifth off."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


def with_exact_norms(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                norm = LayerNorm(child.normalized_shape, eps=child.eps)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
    return model


RUNG = Rung(
    name="bf16_weights",
    title="bf16 weights, fp32 masters",
    source="https://arxiv.org/abs/1710.03740",
    essay=__doc__,
    drift=bf16.RUNG.drift,
    slot="precision",
    precision="bf16",
    bf16_weights=True,
    unavailable=bf16.unavailable,
    convert=with_exact_norms,
)
