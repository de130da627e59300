"""To which part of a training step a kernel belongs.

What launched it tells most: the phase of the step, then the operators from the innermost outwards, then the shapes of
their tensors. The kernel's own name is asked only where the trace knows no operator that says something. Matrix
products are the head's or a block's by their shapes; where these are not known, as in a CUDA graph, the product just
before the cross-entropy and the two after it are the head's. Every name that is known stands in a table of this file.

A kernel that the compiler fused carries the names of the operators whose work it does, and may belong to several parts.

What no rule knows is `OTHER`, and is shown by name. Where a head's product has the very shape of a block's (a
vocabulary of 4C), it counts as the block's.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from results.profiles import Kernel, Profile

BLOCK, HEAD = "block GEMMs", "head GEMMs"
ATTENTION, NORM, GELU, BIAS = "attention", "residual + LayerNorm", "GELU", "bias gradients"
LOSS, OPTIMIZER, EMBEDDING = "cross-entropy", "optimizer", "embedding"
BOUNDED = (BLOCK, HEAD, ATTENTION, NORM, GELU, BIAS, LOSS, OPTIMIZER, EMBEDDING)  # what a roofline has a bound for
COMMUNICATION, OTHER, IDLE = "communication", "other", "idle"
PRODUCT = "matrix product"  # whose shapes say which

COMPILERS_PADDING = 8  # 16-bit numbers in a wide load

Shape = Sequence[int]
Rules = tuple[tuple[str, str], ...]  # the first pattern that is found decides

NETWORK = re.compile(r"(?i:nccl|gloo|^c10d|all_?reduce|all_?gather|reduce_?scatter)")

# Operators and nodes of the backward pass, e.g. aten::native_layer_norm and NativeLayerNormBackward0.
OPERATORS: Rules = (
    (r"_fused_adam|_foreach_|adamw_|gradient_norms|linalg_vector_norm", OPTIMIZER),
    (r"^stepladder::mlp", BLOCK),  # its own products, GELU inside
    (r"(?i:log_?softmax|nll_?loss|cross_?entropy)", LOSS),
    (r"(?i:attention|softmax|masked_?fill|triu|bmm)", ATTENTION),
    (r"(?i:layer_?norm)", NORM),
    (r"(?i:gelu)", GELU),
    (r"(?i:embedding)", EMBEDDING),
    (r"^(?:aten|mkldnn\w*)::\w*(?:mm|linear|matmul)(?:_\w+)?$", PRODUCT),
)

# Kernels that no operator speaks for: of PyTorch, cuDNN, and this project's own.
KERNELS: Rules = (
    (r"(?i:multi_tensor_apply|fused_?adam)|adamw_kernel|norms_kernel", OPTIMIZER),
    (r"linear_gelu_kernel|gelu_gradient_kernel", BLOCK),
    (r"(?i:log_?softmax|nll_?loss|cross_?entropy)", LOSS),
    (r"(?i:flash|fmha|sdpa|attention|softmax|dot_do_o|convert_dq)", ATTENTION),
    (r"(?i:layer_?norm|GammaBeta)", NORM),
    (r"(?i:gelu)", GELU),
    (r"(?i:embedding|indexSelect)", EMBEDDING),
    (r"(?i:gemm|gemv|nvjet|cutlass|xmma|splitK)", PRODUCT),
)

# triton_red_fused_add_native_layer_norm_3, graph_1_cpp_fused_gelu_backward_sum_7: PyTorch's operators, in a row.
FUSED = re.compile(r"(?:triton_(?P<kind>[a-z]+)|(?:graph_\d+_)?cpp)_fused_(?P<operators>\w*)")
FUSED_OPERATORS: Rules = (
    (r"nll_loss|log_softmax|logsumexp|(?<!linear_)cross_entropy|(?<![a-z])ne(?![a-z])", LOSS),  # ne: targets that count
    (r"scaled_dot_product|attention|(?<!log)(?<!prepare)_softmax|bmm", ATTENTION),
    (r"layer_norm", NORM),
    (r"gelu", GELU),
    (r"embedding", EMBEDDING),
)
# What other parts do as well, or to hand their result on: it tells only where nothing else does.
FUSED_BESIDES: Rules = (
    (r"masked_fill|triu", ATTENTION),
    (r"linear_cross_entropy|prepare_softmax", LOSS),
    (r"select_backward|clone_(?:\w+_)?(?:transpose|permute)", ATTENTION),  # q, k and v in one tensor, heads side by side
)
SUM, ADD, CAST, VIEW = (re.compile(rf"(?<![a-z]){word}(?![a-z])") for word in ("sum", "add", "to_copy", "view"))
TEMPLATE = "tem"  # Inductor's own matrix product, with what follows it fused in


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model's sizes in the letters of `model.gpt2`; N is B·T."""

    B: int
    T: int
    C: int
    H: int
    V: int
    P: int
    positions: int

    @property
    def N(self) -> int:
        return self.B * self.T

    def is_vocabulary(self, n: int) -> bool:
        """Whether so many rows are the table's, as the model or as the compiler pads it for wide loads."""
        return n == self.P or self.V <= n < self.V + COMPILERS_PADDING

    def is_weight(self, shape: Shape) -> bool:
        """Whether a tensor is a matrix of weights, or its gradient."""
        widths = (self.C, 3 * self.C, 4 * self.C)
        matrix = len(shape) == 2 and self.C in shape and shape[0] != self.N
        return matrix and all(n in widths or self.is_vocabulary(n) for n in shape)

    def is_activation(self, shape: Shape) -> bool:
        """Whether a tensor has a row of channels for every token."""
        return not self.is_weight(shape) and math.prod(shape) in {self.N * self.C * k for k in (1, 3, 4)}

    @classmethod
    def of(cls, profile: Profile) -> "Sizes":
        w, m = profile.workload, profile.model
        return cls(
            B=w["micro_batch"], T=w["seq_len"], C=m["n_embd"], H=m["n_head"], V=m["vocab_size"], P=m["rows"],
            positions=m["n_positions"],
        )  # fmt: skip


def parts_of(kernel: Kernel, sizes: Sizes) -> tuple[str, ...]:
    """The parts that a kernel works for: one, or several where the compiler fused them.

    Args:
        kernel: as it was traced.
        sizes: of the model.
    """
    if any(NETWORK.search(name) for name in (kernel.name, *kernel.launched_by)):
        return (COMMUNICATION,)
    if kernel.phase == "update":
        return (OPTIMIZER,)
    if named := fused_parts(kernel.name):
        parts = by_tensors(named, kernel, sizes)
    elif part := first(OPERATORS, reversed(kernel.launched_by)) or first(KERNELS, [kernel.name]):
        parts = (part,)
    else:
        parts = (sum_part(kernel, sizes) or shape_part(kernel.shapes, sizes) or unshaped_part(kernel.name),)
    if PRODUCT in parts:
        return (product_part(kernel.shapes, sizes) or product_among(kernel.neighbours),)
    return parts


def first(rules: Rules, names: Iterable[str]) -> str | None:
    """What the rules say of the first name that they know."""
    return next((part for name in names for pattern, part in rules if re.search(pattern, name)), None)


def fused_parts(name: str) -> tuple[str, ...]:
    """Of a kernel made by the compiler, from the operators in its name; () where there are none that tell."""
    if (found := FUSED.match(name)) is None:
        return ()
    parts = {part for pattern, part in FUSED_OPERATORS if re.search(pattern, found["operators"])}
    if found["kind"] == TEMPLATE and ATTENTION not in parts:
        return (PRODUCT,)
    # The gradient of a bias is a sum over rows; the loss, attention and the embedding have sums of their own.
    if SUM.search(found["operators"]) and not parts & {LOSS, ATTENTION, EMBEDDING}:
        parts.add(BIAS)
    if not parts and (besides := first(FUSED_BESIDES, [found["operators"]])):
        parts.add(besides)
    return tuple(part for part in BOUNDED if part in parts)


def by_tensors(parts: tuple[str, ...], kernel: Kernel, sizes: Sizes) -> tuple[str, ...]:
    """Those of a fused kernel's parts that its tensors bear out; its name also tells what its inputs were made by."""
    tensors = [s for s in kernel.shapes if s]
    if not tensors:
        return parts
    activations = sum(sizes.is_activation(s) for s in tensors)
    if BIAS in parts and activations < 2:  # it reads a gradient, or what was added up of it, and writes sums alone
        of_positions = any(tuple(s[-2:]) == (sizes.T, sizes.C) and not sizes.is_activation(s) for s in tensors)
        return (EMBEDDING if of_positions else BIAS,)
    if "_scaled_mm" in kernel.name and not activations and any(sizes.is_weight(s) for s in tensors):
        return (OPTIMIZER,)  # a weight's cast to 8 bits
    return parts


def unshaped_part(name: str) -> str:
    """Of a kernel made by the compiler that only adds or casts, where no shape says of what."""
    if (found := FUSED.match(name)) is None:
        return OTHER
    # An activation is seen as rows for the product that takes it; weights and their gradients are cast as they are.
    if ADD.search(found["operators"]) or VIEW.search(found["operators"]):
        return NORM
    return OPTIMIZER if CAST.search(found["operators"]) else OTHER


def product_among(neighbours: Sequence[str]) -> str:
    """Whose a product without shapes is, by the two kernels before it and the one after; `OTHER` without them."""
    if not neighbours:
        return OTHER
    *before, after = [(fused_parts(name) or (first(KERNELS, [name]),))[0] for name in neighbours]
    if before[-1:] == [EMBEDDING] and "backward" in neighbours[-2]:
        return HEAD  # the table's gradient, added to the embedding's at the very end
    return HEAD if after == LOSS or before[-1:] == [LOSS] or before == [LOSS, PRODUCT] else BLOCK


def product_part(shapes: Sequence[Shape], sizes: Sizes) -> str | None:
    """A block's matrix product, the head's, or attention's, by the shapes of its operands; None without them."""
    matrices = [s for s in shapes if len(s) >= 2]
    if not matrices:
        return None
    if len(matrices) >= 2 and all(math.prod(s[:-2]) > 1 for s in matrices[:2]):
        return ATTENTION  # one product for each sequence and head
    N, C = sizes.N, sizes.C
    if len(matrices) >= 2:
        (a, k), (l, b) = [(math.prod(s[:-1]), s[-1]) for s in matrices[:2]]
        both = sorted((a, k, b if l == k else l))  # l is not k where the weight is given as it is kept, (out, in)
        if any(both == sorted((N, C, block)) for block in (C, 3 * C, 4 * C)):
            return BLOCK
        if any(sizes.is_vocabulary(rows) and both == sorted((N, C, rows)) for rows in both):
            return HEAD
    return HEAD if any(sizes.is_vocabulary(n) for shape in matrices for n in shape) else BLOCK


def sum_part(kernel: Kernel, sizes: Sizes) -> str | None:
    """Of a sum that belongs to no named operator: over rows for a bias, over sequences for the positions.

    Fewer rows than there are tokens were added up already: the compiler's norms leave the rest of that to PyTorch.
    """
    if kernel.phase != "backward" or "aten::sum" not in kernel.launched_by:
        return None
    added = [s for s in kernel.shapes if s and s[-1] in (sizes.C, 3 * sizes.C, 4 * sizes.C)]
    if not added:
        return None
    largest = max(added, key=len)
    return {2: BIAS if sizes.is_activation(largest) else NORM, 3: EMBEDDING}.get(len(largest))


def shape_part(shapes: Sequence[Shape], sizes: Sizes) -> str | None:
    """Of work element by element, by its largest tensor: every part but the products has shapes of its own."""
    if not any(shapes):
        return None
    largest = tuple(max(shapes, key=math.prod))
    C, T, H, rows, width = sizes.C, sizes.T, sizes.H, math.prod(largest[:-1]), largest[-1]
    of_positions = any(tuple(s) in ((T, C), (sizes.positions, C)) for s in shapes)
    if len(largest) == 3 and of_positions:
        return EMBEDDING  # the sum of both
    if len(largest) == 1:
        return OPTIMIZER if width in (C, 3 * C, 4 * C) else None
    if sizes.is_weight(largest):
        return OPTIMIZER  # its cast, or its gradient's sum
    if of_positions:
        return EMBEDDING
    if sizes.is_vocabulary(width):
        return LOSS
    if largest[-2:] == (T, T) or (len(largest) >= 3 and width == C // H and H in largest):
        return ATTENTION
    if math.prod(largest) == sizes.N * 3 * C:
        return ATTENTION  # queries, keys and values in one tensor
    return {C: NORM, 4 * C: GELU}.get(width) if rows == sizes.N else None
