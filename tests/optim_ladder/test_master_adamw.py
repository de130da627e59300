"""AdamW with bfloat16 parameters: fp32 AdamW on the masters, bit by bit, and the parameters their rounding."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from optim_ladder.master_adamw import MasterAdamW, adamw

SHAPES = [(7, 5), (3,), (40, 33), (), (64,)]
FORMS = {
    "tensor by tensor": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"foreach": None, "fused": True},
}


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaves() -> list[Tensor]:
    return [draw(shape, seed).requires_grad_() for seed, shape in enumerate(SHAPES)]


def groups(parameters: list[Tensor]) -> list[dict]:
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def steps(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], numbers: range, clip: Callable | None = None
) -> list[Tensor]:
    """Gradients in bfloat16, drawn anew for each step, clipped and applied at a moving rate; returns the norms."""
    norms = []
    for number in numbers:
        for group, factor in zip(optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = 1e-2 * factor / (1 + number)
        for seed, p in enumerate(parameters):
            p.grad = (0.05 * draw(tuple(p.shape), 1000 * number + seed)).bfloat16().to(p.dtype)
        norms.append((clip or optimizer.clip_grad_norm_)(1.0))
        optimizer.step()
        optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("keywords", FORMS.values(), ids=FORMS)
def test_masters_are_trained_as_fp32_is_bit_by_bit(keywords: dict) -> None:
    ours, theirs = leaves(), leaves()
    optimizer = MasterAdamW(groups(ours), betas=(0.9, 0.95), **keywords)
    expected = torch.optim.AdamW(groups(theirs), betas=(0.9, 0.95), **keywords)
    foreach = keywords["foreach"]
    norms = steps(optimizer, ours, range(6))
    clip = partial(nn.utils.clip_grad_norm_, theirs, foreach=foreach)
    assert norms == steps(expected, theirs, range(6), clip)
    for p, q in zip(ours, theirs, strict=True):
        kept = optimizer.state[p]
        assert torch.equal(kept["master"], q) and torch.equal(p, q.bfloat16()) and p.dtype == torch.bfloat16
        assert kept["master"].dtype == kept["exp_avg"].dtype == torch.float32
        for name, value in expected.state[q].items():
            assert torch.equal(kept[name], value), name


def test_updates_too_small_for_bfloat16_add_up() -> None:
    weight = torch.ones(8, requires_grad=True)
    optimizer = MasterAdamW([weight], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones(8, dtype=torch.bfloat16)
        optimizer.step()
    assert torch.allclose(weight.float(), torch.full((8,), 0.99), atol=2e-3)  # a hundredth off, of steps of 2^-8


def test_the_norm_is_not_rounded_and_gradients_stay_as_they_are() -> None:
    parameters = leaves()
    optimizer = MasterAdamW(parameters)
    for seed, p in enumerate(parameters):
        p.grad = draw(tuple(p.shape), seed).bfloat16()
    given = [p.grad.clone() for p in parameters]
    exact = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in given]))
    norm = optimizer.clip_grad_norm_(0.1)
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(exact.item(), rel=1e-6)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, given, strict=True))
    clipped = torch.linalg.vector_norm(torch.cat([m.grad.flatten() for m in optimizer.masters]))
    assert clipped.item() == pytest.approx(0.1, rel=1e-4)


def test_a_step_without_clipping_takes_the_gradients_itself() -> None:
    ours, theirs = leaves(), leaves()
    optimizer, expected = MasterAdamW(ours), torch.optim.AdamW(theirs)
    for number in range(2):
        for seed, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = draw(tuple(p.shape), 100 * number + seed).bfloat16()
            q.grad = p.grad.float()
        optimizer.step()
        expected.step()
    assert all(torch.equal(optimizer.state[p]["master"], q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("theirs", [MasterAdamW, torch.optim.AdamW])
def test_a_state_goes_on_where_it_was(theirs: type[torch.optim.Optimizer]) -> None:
    """Its own bit by bit; that of PyTorch's optimizer with the parameters as the masters."""
    before = leaves()
    source = theirs(groups(before), betas=(0.9, 0.95), foreach=False)
    clip = None if theirs is MasterAdamW else lambda most: nn.utils.clip_grad_norm_(before, most, foreach=False)
    steps(source, before, range(3), clip)
    saved = copy.deepcopy(source.state_dict())  # which the optimizer loading it would share
    after = [p.detach().float().requires_grad_() for p in before]
    optimizer = MasterAdamW(groups(after), betas=(0.9, 0.95), foreach=False)
    steps(optimizer, after, range(40, 42))  # another past, to be forgotten
    if theirs is torch.optim.AdamW:
        for p, q in zip(after, before, strict=True):
            p.data.copy_(q.data)
    optimizer.load_state_dict(saved)
    pairs = [(optimizer.state[p], source.state[q], q) for p, q in zip(after, before, strict=True)]
    assert all(torch.equal(ours["exp_avg"], theirs["exp_avg"]) for ours, theirs, _ in pairs)
    if theirs is torch.optim.AdamW:  # what it had in fp32 is not in its state: the masters begin rounded
        assert all(torch.equal(ours["master"], q.bfloat16().float()) for ours, _, q in pairs)
        return
    assert steps(source, before, range(3, 6)) == steps(optimizer, after, range(3, 6))
    for p, q in zip(after, before, strict=True):
        assert torch.equal(optimizer.state[p]["master"], source.state[q]["master"])


def test_build_asks_for_it_by_one_word() -> None:
    assert type(adamw(leaves(), foreach=False)) is torch.optim.AdamW
    assert type(adamw(leaves(), foreach=False, bf16_shadow=True)) is MasterAdamW


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a parameter is torch.bfloat16; all must be torch.float32"):
        MasterAdamW([torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)])
    with pytest.raises(ValueError, match="Invalid learning rate"):
        MasterAdamW(leaves(), lr=-1.0)
    with pytest.raises(ValueError, match="a group cannot be added once there are masters"):
        MasterAdamW(leaves()).add_param_group({"params": leaves()})
