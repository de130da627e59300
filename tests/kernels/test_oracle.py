"""The judge is judged: what it gives to truth, eager and ours, and what it lets pass."""

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import check, draw


def test_truth_eager_and_ours_are_given_the_same_gradients() -> None:
    """Else how far rounding takes the given gradient would count as eager's error, and widen the bound for ours."""
    given: list[Tensor] = []

    def doubled(x: Tensor) -> Tensor:
        y = 2.0 * x
        y.register_hook(given.append)
        return y

    check(doubled, doubled, {"x": draw(100, dtype=torch.bfloat16)})
    assert {g.dtype for g in given} == {torch.float64, torch.bfloat16} and len(given) == 3
    assert all(torch.equal(g.double(), given[0].double()) for g in given)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: 2.0 * x + 0.1, "output 0 is off by 0.1"),
        (lambda x: 2.0 * x.detach() + 1.9 * (x - x.detach()), "gradient of x is off by"),
        (lambda x: 2.0 * x * torch.tensor(torch.nan), "output 0 is off by nan"),
        (lambda x: (2.0 * x).double(), "output 0"),
        (lambda x: 2.0 * x[:-1], "output 0"),
    ],
    ids=["an offset", "a gradient", "no number", "a type", "a shape"],
)
def test_what_is_wrong_does_not_pass(wrong, words: str) -> None:
    given = {"x": draw(100)}
    check(lambda x: x + x, lambda x: 2.0 * x, given)
    with pytest.raises(AssertionError, match=words):
        check(wrong, lambda x: 2.0 * x, given)
