"""What one node per sum of products, slopes for closures, and graphs without cycles buy, beside the plainest engine.

One training step (16 examples forward, the squared error, backward, update) of a 2-16-16-1 tanh perceptron, the same
numbers on both sides. ``pytest tests/pea/test_speed.py -s`` prints the figures of pea/README.md.
"""

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

import pytest

from pea import Value
from pea.nn import MLP
from tests.pea.plain import Plain

SIZES = [2, 16, 16, 1]
RATE = 0.01
DRAW = random.Random(1)
EXAMPLES = [((DRAW.gauss(0, 1), DRAW.gauss(0, 1)), DRAW.choice((-1.0, 1.0))) for _ in range(16)]


def pea_step(model: MLP) -> Value:
    loss = sum((model(x)[0] - target) ** 2 for x, target in EXAMPLES)
    model.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        parameter.data -= RATE * parameter.grad
    return loss


def by_operators_step(layers: list, number: type) -> Value | Plain:
    """The same with + and * alone, which is all the plain engine has; its parameters are (weights, bias) per neuron."""
    loss = number(0.0)
    for x, target in EXAMPLES:
        h = [number(value) for value in x]
        for layer in layers:
            outputs = []
            for weights, bias in layer:
                y = bias
                for w, value in zip(weights, h):
                    y = y + w * value
                outputs.append(y if layer is layers[-1] else y.tanh())
            h = outputs
        error = h[0] + number(-target)
        loss = loss + error * error
    parameters = [p for layer in layers for weights, bias in layer for p in (*weights, bias)]
    for parameter in parameters:
        parameter.grad = 0.0
    loss.backward()
    for parameter in parameters:
        parameter.data -= RATE * parameter.grad
    return loss


def arms() -> dict[str, Callable]:
    """Each engine's step over its own copy of the same weights."""

    def copied(number: type) -> list:
        return [[([number(w.data) for w in n.w], number(n.b.data)) for n in layer.neurons] for layer in model.layers]

    model = MLP(SIZES[0], SIZES[1:], rng=random.Random(0))
    plain, operators = copied(Plain), copied(Value)
    return {
        "plain": lambda: by_operators_step(plain, Plain),
        "pea, * and +": lambda: by_operators_step(operators, Value),
        "pea": lambda: pea_step(model),
    }


def seconds(step: Callable, steps: int = 1) -> float:
    """Of this thread's own time, so that a busy machine counts little; the graph's release is part of it."""
    gc.collect()
    start = time.thread_time()
    for _ in range(steps):
        step()
    return (time.thread_time() - start) / steps


@pytest.fixture
def alone():
    """What other tests have left in memory is none of the collector's business here."""
    gc.collect()
    gc.freeze()
    yield
    gc.enable()
    gc.unfreeze()


def test_both_engines_compute_the_same(alone) -> None:
    losses = {name: [step().data for _ in range(3)] for name, step in arms().items()}
    assert losses["plain"] == pytest.approx(losses["pea"], rel=1e-12)
    assert losses["plain"] == pytest.approx(losses["pea, * and +"], rel=1e-12)
    assert losses["pea"][2] < losses["pea"][0]


@pytest.mark.parametrize(("collector", "steps"), [("off", 1), ("on", 3)])
def test_a_training_step_is_at_least_one_and_a_half_times_as_fast(alone, collector: str, steps: int) -> None:
    engines = arms()
    if collector == "off":
        gc.disable()  # the harder comparison: nobody collects what the plain engine leaves behind
    rounds = [{name: seconds(step, steps) for name, step in engines.items()} for _ in range(9 if steps == 1 else 3)]
    for name in engines:
        ratio = statistics.median(r["plain"] / r[name] for r in rounds)
        step_ms = statistics.median(r[name] for r in rounds) * 1e3
        print(f"\ncollector {collector}: {name:12} {step_ms:6.1f} ms  {ratio:.2f}x", end="")
    assert statistics.median(r["plain"] / r["pea"] for r in rounds) >= 1.5
    if collector == "on":
        assert statistics.median(r["plain"] / r["pea, * and +"] for r in rounds) >= 1.2


def test_a_training_step_takes_a_fraction_of_the_memory_and_keeps_none(alone) -> None:
    gc.disable()
    peak, left = {}, {}
    for name, step in arms().items():
        step()  # the parameters' first gradients are there to stay
        tracemalloc.start()
        step()
        left[name], peak[name] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"\n{name:12} peak {peak[name] / 1024:6.0f} KiB, after the step {left[name] / 1024:6.0f} KiB", end="")
    assert peak["pea"] < peak["plain"] / 5 and peak["pea, * and +"] < peak["plain"] / 1.8
    assert left["pea"] < peak["pea"] / 10
