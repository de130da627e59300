"""The engine: numbers and gradients by hand and by finite differences, depth, repetition, copies, what it refuses."""

import copy
import decimal
import fractions
import gc
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pea import Value
from pea.value import dot, graph

ROOT = Path(__file__).resolve().parents[2]


def test_worked_example() -> None:
    a, b = Value(2.0), Value(3.0)
    y = a * b + b
    y.backward()
    assert (y.data, a.grad, b.grad) == (9.0, 3.0, 3.0)


# One entry per rule and per side a number may stand on: the function and where to try it.
RULES = {
    "a + b": (lambda a, b: a + b, (1.5, -2.0)),
    "a + 2": (lambda a: a + 2, (1.5,)),
    "2 + a": (lambda a: 2 + a, (1.5,)),
    "a - b": (lambda a, b: a - b, (1.5, -2.0)),
    "a - 2": (lambda a: a - 2, (1.5,)),
    "2 - a": (lambda a: 2 - a, (1.5,)),
    "a * b": (lambda a, b: a * b, (1.5, -2.0)),
    "a * 3": (lambda a: a * 3, (1.5,)),
    "3 * a": (lambda a: 3 * a, (1.5,)),
    "a / b": (lambda a, b: a / b, (1.5, -2.0)),
    "a / 4": (lambda a: a / 4, (1.5,)),
    "4 / a": (lambda a: 4 / a, (-1.5,)),
    "-a": (lambda a: -a, (1.5,)),
    "a ** 3": (lambda a: a**3, (-1.5,)),
    "a ** -2": (lambda a: a**-2, (-1.5,)),
    "a ** 0.5": (lambda a: a**0.5, (2.5,)),
    "a ** 0": (lambda a: a**0, (2.5,)),
    "a ** 1 at 0": (lambda a: a**1, (0.0,)),
    "a ** 2 at 0": (lambda a: a**2, (0.0,)),
    "relu, positive": (lambda a: relu(a), (1.5,)),
    "relu, negative": (lambda a: relu(a), (-1.5,)),
    "exp": (lambda a: exp(a), (1.5,)),
    "log": (lambda a: log(a), (1.5,)),
    "tanh": (lambda a: tanh(a), (0.7,)),
    "a used four times": (lambda a, b: a * a / (b + a) - a, (1.5, 2.0)),
    "a += b": (lambda a, b: in_place(a, b), (1.5, 2.0)),
    "a product twice": (lambda a, b: (a * b) ** 2 + exp(a * b) * a, (0.5, 0.7)),
    "a neuron": (lambda a, b: relu(tanh(a * 0.3 + b * -0.2 + 0.1) * 2 + 1) ** 2, (0.5, 0.7)),
}


def relu(x):
    return x.relu() if isinstance(x, Value) else max(x, 0.0)


def exp(x):
    return x.exp() if isinstance(x, Value) else math.exp(x)


def log(x):
    return x.log() if isinstance(x, Value) else math.log(x)


def tanh(x):
    return x.tanh() if isinstance(x, Value) else math.tanh(x)


def in_place(a, b):
    c = a * 2
    c += b
    c *= c
    return c


@pytest.mark.parametrize("name", RULES)
def test_rule_agrees_with_python_and_finite_differences(name: str) -> None:
    function, at = RULES[name]
    leaves = [Value(x) for x in at]
    result = function(*leaves)
    result.backward()
    assert result.data == function(*at)
    h = 1e-5
    for i, leaf in enumerate(leaves):
        up, down = ([x + sign * h * (i == j) for j, x in enumerate(at)] for sign in (1, -1))
        assert leaf.grad == pytest.approx((function(*up) - function(*down)) / (2 * h), rel=1e-7, abs=1e-8)


def test_dot_is_the_sum_of_products_in_one_node() -> None:
    x, y = [Value(v) for v in (1.0, 2.0, 3.0)], [Value(v) for v in (4.0, 5.0, 6.0)]
    result = dot(x, y)
    result.backward()
    assert result.data == 32.0 and result.inputs == (*x, *y)
    assert [v.grad for v in x] == [4.0, 5.0, 6.0] and [v.grad for v in y] == [1.0, 2.0, 3.0]

    square = dot(x, x)  # the same Values on both sides
    square.zero_grad()
    square.backward()
    assert [v.grad for v in x] == [2.0, 4.0, 6.0]
    assert dot([1, 2], x[:2]).data == 5.0 and dot([], []).data == 0.0
    with pytest.raises(ValueError, match="dot of 2 and 3 numbers"):
        dot(x[:2], y)
    with pytest.raises(TypeError, match="Value holds a real number, not str 'x'"):
        dot(x, ["x"] * 3)


def test_a_second_backward_adds_the_same_to_the_leaves_once_more() -> None:
    a, b = Value(2.0), Value(3.0)
    hidden = a * b
    y = hidden * hidden + b
    y.backward()
    once = (a.grad, b.grad)
    y.backward()
    assert (a.grad, b.grad) == (2 * once[0], 2 * once[1]) == (72.0, 50.0)
    assert (y.grad, hidden.grad) == (1.0, 12.0)  # computed Values show the latest call alone


def test_two_results_over_a_shared_part_add_up() -> None:
    a = Value(3.0)
    shared = a * a
    first, second = shared * 2, shared.exp() * 0 + shared
    first.backward()
    second.backward()
    assert a.grad == 6.0 * 2 + 6.0
    shared.backward()  # from the middle: what lies above plays no part
    assert a.grad == 6.0 * 4 and shared.grad == 1.0


def test_backward_of_a_leaf_adds_to_it() -> None:
    a = Value(3.0)
    a.backward()
    a.backward()
    assert a.grad == 2.0


def test_slopes_are_those_of_the_computation() -> None:
    a = Value(2.0)
    y = a * a
    a.data = 100.0  # learning changes a leaf after the fact; the gradient is of what was computed
    y.backward()
    assert a.grad == 4.0


def test_zero_grad_reaches_everything_beneath_and_nothing_else() -> None:
    a, b = Value(2.0), Value(3.0)
    y = (a * b).tanh()
    z = y + b
    z.backward()
    y.zero_grad()
    assert [node.grad for node in graph(y)] == [0.0] * 4 and z.grad == 1.0
    z.backward()
    assert b.grad == pytest.approx(1.0 + 2.0 * (1.0 - math.tanh(6.0) ** 2))


DEEP = """
import sys, threading
sys.path.insert(0, {root!r})
from pea import Value
from pea.viz import to_dot

def work():
    a = Value(1.0)
    y = a
    for _ in range({nodes}):
        y = y + a
    y.backward()
    assert y.data == a.grad == {nodes} + 1, (y.data, a.grad)
    y.zero_grad()
    assert a.grad == 0.0
    assert repr(y) == "Value({nodes}.0, grad=0.0, op='+')".replace("{nodes}", str({nodes} + 1))
    assert to_dot(y).count(" -> ") == 2 * {nodes}
    del y  # frees the chain, one inside the other
    print("done")

threading.stack_size(1024 * 1024)  # an eighth of what the main thread has
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_a_deep_chain_is_walked_printed_drawn_and_freed_on_a_small_stack() -> None:
    code = DEEP.format(root=str(ROOT), nodes=100_000)
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_wide_sum_and_a_ladder_of_doublings() -> None:
    leaves = [Value(1.0) for _ in range(10_000)]
    dot(leaves, leaves).backward()
    assert {leaf.grad for leaf in leaves} == {2.0}
    a = Value(1.0)
    y = a
    for _ in range(200):  # 2^200 paths from top to bottom: walking each would never end
        y = y + y
    y.backward()
    assert a.grad == 2.0**200


def test_a_graph_is_freed_at_once_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        y = sum(Value(float(i)) * i for i in range(100)).tanh()
        y.backward()
        del y
        assert gc.collect() == 0  # nothing was left lying in a cycle
    finally:
        gc.enable()


def test_only_the_standard_library() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n"
        "import pea, pea.nn, pea.transformer, pea.viz\n"
        "print({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "{'pea'}\n", done.stderr


def test_repr_says_what_a_value_is_and_where_from() -> None:
    a = Value(2, label="a")
    y = a.exp() * 0 + a
    y.backward()
    assert repr(a) == "Value(2.0, grad=1.0, label='a')"
    assert repr(y) == "Value(2.0, grad=1.0, op='+')"
    assert repr(Value(-0.5)) == "Value(-0.5, grad=0.0)"
    assert repr(a**2) == "Value(4.0, grad=0.0, op='** 2')"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_leaves_can_be_copied_and_computed_values_say_why_not(again) -> None:
    a = Value(2.0, label="weight")
    (a * 3).backward()
    twin = again(a)
    assert twin is not a and (twin.data, twin.grad, twin.label, twin.inputs) == (2.0, 3.0, "weight", ())
    with pytest.raises(TypeError, match=r"cannot copy or pickle a Value computed by '\*'"):
        again(a * 3)


# Anything real is a number, as for Python's floats; nothing else is.
@pytest.mark.parametrize(
    "number", [3, True, fractions.Fraction(1, 2), np.float64(0.5), np.float32(0.5), np.int64(3)], ids=repr
)
def test_every_real_number_may_stand_on_either_side(number) -> None:
    for value in (Value(number), 0 + Value(number)):
        assert type(value.data) is float and value.data == float(number)
    x = Value(2.0)
    n = float(number)
    results = [x + number, number + x, x - number, number - x, x * number, number * x, x / number, number / x]
    results.append(x**number)
    assert [r.data for r in results] == [2 + n, n + 2, 2 - n, n - 2, 2 * n, n * 2, 2 / n, n / 2, 2**n]
    assert all(type(r) is Value for r in results)


@pytest.mark.parametrize("thing", ["3", None, 1j, decimal.Decimal(3), [1.0], object()], ids=lambda thing: type(thing).__name__)
def test_other_things_are_a_type_error_that_names_the_operation(thing) -> None:
    with pytest.raises(TypeError, match=f"Value holds a real number, not {type(thing).__name__}"):
        Value(thing)
    x = Value(2.0)
    operations = {
        "+": (lambda: x + thing, lambda: thing + x),
        "-": (lambda: x - thing, lambda: thing - x),
        "*": (lambda: x * thing, lambda: thing * x),
        "/": (lambda: x / thing, lambda: thing / x),
        "**": (lambda: x**thing, lambda: thing**x),
    }
    for sign, calls in operations.items():
        for call in calls:
            # A list on the left has its own word for it: can only concatenate list (not "Value") to list.
            with pytest.raises(TypeError, match=f"{re.escape(sign)}|concatenate|can't multiply"):
                call()


def test_a_value_inside_a_value_is_refused() -> None:
    with pytest.raises(TypeError, match="not Value"):
        Value(Value(1.0))


REFUSED = [
    (lambda: Value(1.0) / 0, ZeroDivisionError, "division by zero: 1.0 / 0.0"),
    (lambda: 1 / Value(0.0), ZeroDivisionError, "division by zero: 1.0 / 0.0"),
    (lambda: Value(1.0) / Value(-0.0), ZeroDivisionError, "division by zero: 1.0 / -0.0"),
    (lambda: Value(0.0) ** -1, ZeroDivisionError, "zero to a negative power: 0.0 ** -1"),
    (lambda: Value(-8.0) ** 0.5, ValueError, "-8.0 ** 0.5: a negative number has no real power"),
    (lambda: Value(-8.0) ** 2.0000001, ValueError, "-8.0 ** 2.0000001: a negative number"),
    (lambda: Value(1e200) ** 2, OverflowError, "1e+200 ** 2 is too large"),
    (lambda: Value(2.0) ** Value(3.0), TypeError, "** takes a number as exponent, not a Value"),
    (lambda: 2.0 ** Value(3.0), TypeError, "** takes a number as exponent, not a Value, in 2.0 ** x"),
    (lambda: Value(-1.0).log(), ValueError, "log of -1.0"),
    (lambda: Value(0.0).log(), ValueError, "log of 0.0"),
    (lambda: Value(-math.inf).log(), ValueError, "log of -inf"),
    (lambda: Value(710.0).exp(), OverflowError, "exp of 710.0"),
    (lambda: Value(10**400), OverflowError, "too large"),
    (lambda: Value(np.eye(2)), TypeError, "not ndarray array([[1., 0.], [0., 1.]]); pass"),
    (lambda: torch.eye(2) ** Value(2.0), TypeError, "for ** or pow(): 'Tensor' and 'Value'"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_has_no_answer_is_refused_in_one_line(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_numpy_number_put_in_later_is_held_to_the_same_rules() -> None:
    x = Value(1.0)
    x.data = np.float64(0.0)  # numpy would warn and go on with infinity
    with pytest.raises(ZeroDivisionError, match=re.escape("0.0 ** -1")):
        x**-1


def test_nan_and_infinity_pass_through_unhidden() -> None:
    nan, inf = Value(math.nan), Value(math.inf)
    for result in (nan + 1, nan * 0, nan.relu(), nan.tanh(), nan.exp(), nan.log(), nan**2, inf - inf, inf * 0):
        assert math.isnan(result.data)
    assert (inf.tanh().data, (-inf).exp().data, (-inf).relu().data, (1 / inf).data) == (1.0, 0.0, 0.0, 0.0)


def test_slopes_at_the_edge_of_what_a_float_can_hold() -> None:
    def slope(y: Value) -> float:
        return y.slopes[0]

    assert slope(Value(0.0) ** 0) == 0.0 and slope(Value(0.0) ** 0.5) == math.inf
    assert slope(Value(1e-200) ** -1) == -math.inf and slope(Value(-1e-200) ** -1) == -math.inf
    assert slope(Value(1e-200) ** 2) == 2e-200 and slope(Value(1e-310) ** 0) == 0.0
    assert slope(Value(0.0).relu()) == 0.0 and slope(Value(1000.0).tanh()) == 0.0
