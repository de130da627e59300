"""The same products in fp8 with two fixed scales instead of one found for every row.

Nothing is looked at before it is cast, and a product with one scale for each factor is the form that the vendor's
library has tuned longest. It is possible because the ranges are known: layer norm bounds what enters the MLP and the
head, GELU's output is smaller, and weights begin at 0.02. Activations are divided by 1/4 and weights by 1/128, so that
e4m3, whose largest number is 448, holds activations up to 112 and weights up to 3.5, and those of usual size lie in the
middle of its range. The scales are powers of two: dividing by them rounds nothing.

What is larger is cut off: the product takes 112 for 200, and the gradient does not know. That happens where a norm's
weight has grown beyond 4 and one channel holds nearly all of a token's length, where GELU answers above 112, and where
an embedding or a weight has grown beyond 3.5: after long training or in weights from elsewhere, and not expected near
this initialisation. It shows in no NaN, and neither does an infinity that enters one of these products: it shows as a
loss that is another one in bf16. So evaluate a checkpoint without this rung now and then, and where the two losses
part, go on from it with `fp8`, which nothing overflows.
"""

from dataclasses import replace

from model import GPT2Config
from optim_ladder.rung import Rung
from optim_ladder.rungs import fp8


def use_static(config: GPT2Config) -> GPT2Config:
    return replace(fp8.padded(config), mlp="fp8_static", head="fp8_static")


RUNG = Rung(
    name="fp8_static",
    title="fp8 with fixed scales",
    source="https://arxiv.org/abs/2209.05433",
    essay=__doc__,
    drift=fp8.RUNG.drift,
    needs=("bf16",),
    slot="mlp",
    quantised=True,
    aside=True,
    unavailable=fp8.unavailable,
    model_config=use_static,
)
