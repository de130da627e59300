"""Let the compiler try many forms of every kernel on this device, and keep the fastest of each.

Without it, the compiler chooses tile sizes by rules of thumb, and leaves matrix products to the vendor's library.
With it, a product is also generated as a Triton kernel in a dozen or more forms, what comes after the product (bias,
GELU, a residual) fused into some of them; all of them and the vendor's are timed on this device at this shape, and
one is kept. Each fused kernel's block sizes are then moved one at a time, up and down, as long as that makes it
faster: coordinate descent. CUDA graphs, which the mode of the same name brings along, are a rung of their own here.

It is paid for in compiling: on a GPU minutes where `compile` takes half a minute, at the first step with every new
shape; the disk cache keeps what was found, also for other settings with the same products. Cards with fewer than 68
multiprocessors are left with coordinate descent, since the compiler does not trust its own products there. On a
processor it tries other forms only for products of two activations, attention written out, and takes hardly longer.
Where the vendor's library is at its best already, nothing is gained.
"""

from torch import nn

from optim_ladder import compiler
from optim_ladder.rung import REORDERED, Rung
from optim_ladder.rungs import compile


def compiled(module: nn.Module) -> nn.Module:
    from torch._inductor import select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False  # ten lines for every product, in the middle of a run's progress
    return compiler.compiled(module, options={"max_autotune": True, "coordinate_descent_tuning": True})


RUNG = Rung(
    name="max_autotune",
    title="max-autotune",
    source="https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    essay=__doc__,
    drift=REORDERED,
    slot="compiler",
    unavailable=compile.unavailable,
    compile=compiled,
)
