"""`torch.compile` as the rungs ask for it."""

import pytest
import torch
from torch._inductor.exc import OperatorIssue

from optim_ladder import rung


class Unwritable:
    """An argument that takes for ever to be written out."""

    def __repr__(self) -> str:
        raise AssertionError("written out")


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what the rung changes."""
    monkeypatch.setattr(OperatorIssue, "operator_str", OperatorIssue.operator_str)


@pytest.mark.parametrize("name", ["compile", "max_autotune"])
def test_the_arguments_of_an_unknown_operation_are_not_written_out(
    name: str, messages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="written out"):
        OperatorIssue.operator_str("aten.mm", [Unwritable()], {})
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    rung(name).compile(torch.nn.Linear(1, 1))
    assert "aten.mm" in OperatorIssue.operator_str("aten.mm", [Unwritable()], {})
