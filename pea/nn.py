"""Small networks of `Value`s: a neuron, a layer of them, layers in a row, and what turns their output into a loss."""

import math
import operator
import random
from collections.abc import Sequence

from pea.value import Value, dot, values

ACTIVATIONS = ("tanh", "relu", "linear")


class Module:
    """Something with parameters to learn."""

    def parameters(self) -> list[Value]:
        """The Values that learning changes, always in the same order."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Sets every parameter's gradient to zero, which a training step begins with."""
        for parameter in self.parameters():
            parameter.grad = 0.0


class Neuron(Module):
    """One number out of many: ``activation(w · x + b)``.

    Args:
        num_inputs: how many numbers it looks at.
        activation: ``"tanh"``, ``"relu"`` or ``"linear"`` (none).
        rng: source of the first weights; the `random` module's own (seeded by `random.seed`) when left out.

    Raises:
        ValueError: no inputs, or an unknown activation.
    """

    def __init__(self, num_inputs: int, *, activation: str = "tanh", rng: random.Random | None = None) -> None:
        if num_inputs < 1:
            raise ValueError(f"num_inputs is {num_inputs}; a neuron needs at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        draw = (rng or random).gauss
        # With this spread w · x is about as large as one x, however many there are.
        self.w = [Value(draw(0.0, 1.0 / math.sqrt(num_inputs))) for _ in range(num_inputs)]
        self.b = Value(0.0)
        self.activation = activation

    def __call__(self, x: Sequence[Value | float]) -> Value:
        if len(x) != len(self.w):
            raise ValueError(f"a neuron of {len(self.w)} inputs was given {len(x)} numbers; give {len(self.w)}")
        y = dot(self.w, x) + self.b
        return y if self.activation == "linear" else getattr(y, self.activation)()

    def parameters(self) -> list[Value]:
        return [*self.w, self.b]


class Layer(Module):
    """Neurons side by side, all looking at the same inputs.

    Args:
        num_inputs: how many numbers each neuron looks at.
        num_outputs: how many neurons there are.
        activation, rng: as of `Neuron`.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, *, activation: str = "tanh", rng: random.Random | None = None
    ) -> None:
        if num_outputs < 1:
            raise ValueError(f"num_outputs is {num_outputs}; a layer needs at least 1 neuron")
        self.neurons = [Neuron(num_inputs, activation=activation, rng=rng) for _ in range(num_outputs)]

    def __call__(self, x: Sequence[Value | float]) -> list[Value]:
        x = values(x)  # once, not once per neuron
        return [neuron(x) for neuron in self.neurons]

    def parameters(self) -> list[Value]:
        return [parameter for neuron in self.neurons for parameter in neuron.parameters()]


class MLP(Module):
    """Layers in a row, each looking at the outputs of the one before; the last one is linear.

    Args:
        num_inputs: how many numbers go in.
        num_outputs: neurons of each layer; the last entry is how many numbers come out.
        activation: of all layers but the last.
        rng: as of `Neuron`.
    """

    def __init__(
        self, num_inputs: int, num_outputs: Sequence[int], *, activation: str = "tanh", rng: random.Random | None = None
    ) -> None:
        if not num_outputs:
            raise ValueError("num_outputs is empty; name the size of at least one layer")
        sizes = [num_inputs, *num_outputs]
        activations = [activation] * (len(num_outputs) - 1) + ["linear"]
        self.layers = [Layer(i, o, activation=a, rng=rng) for i, o, a in zip(sizes, sizes[1:], activations)]

    def __call__(self, x: Sequence[Value | float]) -> list[Value]:
        for layer in self.layers:
            x = layer(x)
        return x

    def parameters(self) -> list[Value]:
        return [parameter for layer in self.layers for parameter in layer.parameters()]


def softmax(logits: Sequence[Value | float]) -> list[Value]:
    """Numbers of any size to probabilities: ``exp(z)`` over the sum of them all.

    Args:
        logits: at least one number.

    Returns:
        As many Values, each in [0, 1], together 1.

    Raises:
        ValueError: there are no logits.
    """
    exps = _exps(values(logits))
    total = sum(exps)
    return [e / total for e in exps]


def cross_entropy_loss(logits: Sequence[Value | float], target: int | Sequence[float]) -> Value:
    """How surprised the logits are by the truth: -log of the probability that `softmax` gives it, in nats.

    Args:
        logits: one number per class.
        target: the right class, or a probability for each class (`one_hot`, or softer ones).

    Returns:
        The loss, 0 at best; taken without the probabilities, so it stays finite where one of them rounds to zero.

    Raises:
        ValueError: there are no logits, the class is not among them, or the probabilities are not one for each or do
            not add up to 1.
    """
    logits = values(logits)
    exps = _exps(logits)
    target = target if isinstance(target, Sequence) else one_hot(target, len(logits))
    if len(target) != len(logits):
        raise ValueError(f"target has {len(target)} probabilities for {len(logits)} logits; give one for each")
    if min(target) < 0.0 or not math.isclose(math.fsum(target), 1.0, abs_tol=1e-6):
        raise ValueError(f"target is {target!r:.80}; probabilities are not negative and add up to 1")
    top = max(z.data for z in logits)
    log_total = sum(exps).log() + top
    return sum((log_total - z) * p for z, p in zip(logits, target) if p)


def one_hot(index: int, num_classes: int) -> list[float]:
    """All zeros but a one at the index.

    Raises:
        ValueError: the index is not one of the classes.
    """
    if not 0 <= operator.index(index) < num_classes:
        raise ValueError(f"class {index} is not among {num_classes}; the classes are 0 to {num_classes - 1}")
    return [float(i == index) for i in range(num_classes)]


def _exps(logits: list[Value]) -> list[Value]:
    """exp of each logit less the largest of them: nothing overflows, and a softmax does not notice a common shift."""
    if not logits:
        raise ValueError("there are no logits; a softmax takes at least one number")
    top = max(z.data for z in logits)
    return [(z - top).exp() for z in logits]
