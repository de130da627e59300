"""Reverse-mode differentiation of scalars, on one page.

Arithmetic on `Value`s computes the result and remembers how it came about: from which inputs, and how fast the result
moves when each of them moves (the slope, d result / d input, at the numbers of this very computation).

    a = Value(2.0)      c = a * b      c.inputs == (a, b)      c.slopes == (b.data, a.data) == (3.0, 2.0)
    b = Value(3.0)

`backward` walks the remembered graph from the result to the numbers it began with and hands every input its share of
the gradient, slope times gradient: the chain rule. Nothing here recurses, so a graph may be as deep as memory allows,
and nothing points from an input to its result, so a graph is freed at once when its result is dropped.

Source: Linnainmaa, "Taylor expansion of the accumulated rounding error" (1976), https://doi.org/10.1007/BF01931367;
Tarjan, "Edge-disjoint spanning trees and depth-first search" (1976), https://doi.org/10.1007/BF00268499, for the order.
"""

import math
from collections.abc import Iterable
from numbers import Real
from operator import mul


class Value:
    """A number that remembers how it was computed.

    Args:
        data: the number; anything real, kept as a float.
        op, inputs, slopes: filled by the operators; a Value without inputs is a leaf.
        label: a name for pictures and `repr`.

    Attributes:
        grad: d result / d self after ``result.backward()``. A leaf's sums up over calls; that of a computed Value
            belongs to the latest call that reached it.

    Raises:
        TypeError: ``data`` is no real number.
    """

    __slots__ = ("data", "grad", "inputs", "label", "op", "slopes")

    def __init__(
        self,
        data: float,
        op: str = "",
        inputs: tuple["Value", ...] = (),
        slopes: tuple[float, ...] = (),
        *,
        label: str = "",
    ) -> None:
        if type(data) is not float:
            if not isinstance(data, Real):
                shown = " ".join(f"{type(data).__name__} {data!r:.80}".split())  # an array prints on several lines
                raise TypeError(f"Value holds a real number, not {shown}; pass an int or a float")
            data = float(data)
        self.data = data
        self.grad = 0.0
        self.label = label
        self.op = op
        self.inputs = inputs
        self.slopes = slopes

    # Each operator is its own derivative rule: the result, then how fast it moves with each input.

    def __add__(self, other: "Value | float") -> "Value":
        if not isinstance(other, Value) and (other := constant(other)) is None:
            return NotImplemented  # Python then raises TypeError and names the operation and both types
        return Value(self.data + other.data, "+", (self, other), (1.0, 1.0))

    def __sub__(self, other: "Value | float") -> "Value":
        if not isinstance(other, Value) and (other := constant(other)) is None:
            return NotImplemented
        return Value(self.data - other.data, "-", (self, other), (1.0, -1.0))

    def __mul__(self, other: "Value | float") -> "Value":
        if not isinstance(other, Value) and (other := constant(other)) is None:
            return NotImplemented
        return Value(self.data * other.data, "*", (self, other), (other.data, self.data))

    def __truediv__(self, other: "Value | float") -> "Value":
        if not isinstance(other, Value) and (other := constant(other)) is None:
            return NotImplemented
        if other.data == 0.0:
            raise ZeroDivisionError(f"division by zero: {self.data} / {other.data}")
        quotient = self.data / other.data
        return Value(quotient, "/", (self, other), (1.0 / other.data, -quotient / other.data))

    def __radd__(self, other: float) -> "Value":
        return NotImplemented if (other := constant(other)) is None else other + self

    def __rsub__(self, other: float) -> "Value":
        return NotImplemented if (other := constant(other)) is None else other - self

    def __rmul__(self, other: float) -> "Value":
        return NotImplemented if (other := constant(other)) is None else other * self

    def __rtruediv__(self, other: float) -> "Value":
        return NotImplemented if (other := constant(other)) is None else other / self

    def __neg__(self) -> "Value":
        return Value(-self.data, "neg", (self,), (-1.0,))

    def __pow__(self, exponent: float) -> "Value":
        """The power with a fixed exponent.

        Raises:
            TypeError: the exponent is a Value or no number.
            ZeroDivisionError: zero to a negative power.
            ValueError: a negative number to a power that is no integer; the result would be complex.
            OverflowError: the result is too large for a float.
        """
        if isinstance(exponent, Value):
            remedy = "for a ** b with a positive a write (b * a.log()).exp()"
            raise TypeError(f"** takes a number as exponent, not a Value; {remedy}")
        if not isinstance(exponent, Real):
            return NotImplemented
        x, n = float(self.data), float(exponent)
        try:
            power = x**n
        except ZeroDivisionError:
            raise ZeroDivisionError(f"zero to a negative power: {x} ** {exponent}") from None
        except OverflowError:
            raise OverflowError(f"{x} ** {exponent} is too large for a float") from None
        if isinstance(power, complex):
            raise ValueError(f"{x} ** {exponent}: a negative number has no real power except integer ones")
        try:
            slope = n * x ** (n - 1.0) if n else 0.0
        except ZeroDivisionError:  # a root at zero: the curve stands upright
            slope = math.inf
        except OverflowError:  # the power is a float, its slope is too steep for one
            slope = n * power / x
        return Value(power, f"** {exponent}", (self,), (slope,))

    def __rpow__(self, base: float) -> "Value":
        if isinstance(base, Real):
            remedy = "with a positive base write (x * math.log(base)).exp()"
            raise TypeError(f"** takes a number as exponent, not a Value, in {base} ** x; {remedy}")
        return NotImplemented

    def relu(self) -> "Value":
        """The number itself where it is positive, else zero; NaN stays NaN."""
        if self.data <= 0.0:
            return Value(0.0, "relu", (self,), (0.0,))
        return Value(self.data, "relu", (self,), (1.0,))

    def exp(self) -> "Value":
        """e to the power of the number.

        Raises:
            OverflowError: the result is too large for a float (above about 709).
        """
        try:
            y = math.exp(self.data)
        except OverflowError:
            raise OverflowError(f"exp of {self.data} is too large for a float") from None
        return Value(y, "exp", (self,), (y,))

    def log(self) -> "Value":
        """The natural logarithm.

        Raises:
            ValueError: the number is zero or negative.
        """
        if self.data <= 0.0:
            raise ValueError(f"log of {self.data}: only a positive number has a logarithm")
        return Value(math.log(self.data), "log", (self,), (1.0 / self.data,))

    def tanh(self) -> "Value":
        """The hyperbolic tangent."""
        y = math.tanh(self.data)
        return Value(y, "tanh", (self,), (1.0 - y * y,))

    def backward(self) -> None:
        """Adds d self / d leaf to the ``grad`` of every leaf that self was computed from.

        A computed Value's ``grad`` is set anew, so a second call adds the same to the leaves once more, and no more.
        """
        # Inputs before what is computed from them: down along the inputs not yet seen, then noted on the way back up.
        # The path down is a list of its own, not calls inside calls, so no depth is too deep. Leaves pass nothing on,
        # so they stay out.
        order, seen = [], {self}
        path = [(self, iter(self.inputs))]
        while path:
            node, untried = path[-1]
            for source in untried:
                if source.inputs and source not in seen:
                    seen.add(source)
                    source.grad = 0.0
                    path.append((source, iter(source.inputs)))
                    break
            else:
                order.append(node)
                path.pop()
        # From the result back: by the time a Value is reached, everything computed from it has handed in its share.
        self.grad = 1.0 if self.inputs else self.grad + 1.0
        for node in reversed(order):
            grad = node.grad
            for source, slope in zip(node.inputs, node.slopes):
                source.grad += slope * grad

    def zero_grad(self) -> None:
        """Sets ``grad`` to zero here and in everything that self was computed from."""
        for node in graph(self):
            node.grad = 0.0

    def __repr__(self) -> str:
        label, op = self.label and f", label={self.label!r}", self.op and f", op={self.op!r}"
        return f"Value({self.data}, grad={self.grad}{label}{op})"

    def __reduce__(self) -> tuple:
        if self.inputs:  # a copy cut off from its history would train nothing and say nothing
            raise TypeError(f"cannot copy or pickle a Value computed by {self.op!r}; keep its number: Value(x.data)")
        return type(self), (self.data,), (None, {"label": self.label, "grad": self.grad})


def constant(number: object) -> Value | None:
    """A leaf for a number that stands beside a Value in an expression; None for what is no real number."""
    return Value(number) if isinstance(number, Real) else None


def values(numbers: Iterable[Value | float]) -> list[Value]:
    """The Values as they are and the plain numbers as new leaves."""
    return [number if isinstance(number, Value) else Value(number) for number in numbers]


def graph(root: Value) -> list[Value]:
    """All Values that ``root`` was computed from, itself first, each once."""
    seen, found = {root}, [root]
    for node in found:  # grows while it is walked
        for source in node.inputs:
            if source not in seen:
                seen.add(source)
                found.append(source)
    return found


def dot(xs: Iterable[Value | float], ys: Iterable[Value | float]) -> Value:
    """The sum of products x₀y₀ + x₁y₁ + …, as one Value with all of them as inputs.

    Written out with * and + it would be a chain of 2n Values; here it is one, and the same gradients.

    Args:
        xs, ys: equally many Values or numbers.

    Raises:
        TypeError: an element is neither a Value nor a real number.
        ValueError: there are more of one than of the other.
    """
    xs, ys = values(xs), values(ys)
    if len(xs) != len(ys):
        raise ValueError(f"dot of {len(xs)} and {len(ys)} numbers; it takes equally many of both")
    x_data, y_data = [x.data for x in xs], [y.data for y in ys]
    return Value(sum(map(mul, x_data, y_data), 0.0), "dot", (*xs, *ys), (*y_data, *x_data))
