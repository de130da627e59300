"""Which configuration a kernel runs in, on cards that are not here: all of CUDA and every measurement is pretended."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from kernels import adamw, bias_gelu, cross_entropy, flash_attention, launching, layer_norm, linear_gelu
from kernels.flat_adamw import FlatAdamW
from kernels.launching import SHARED_KIB, Configuration, Tuner, require_device, usable
from tests.kernels.oracle import DEVICE, draw

CUDA = torch.device("cuda", 0)
CONFIGURATIONS = tuple(Configuration(blocks={"BLOCK": 2**i}, num_warps=4) for i in range(3))
KERNEL = SimpleNamespace(cache_key="source and Triton's version", __name__="some_kernel")


class Card:
    """Pretends a GPU whose time for a configuration is looked up, and counts how often it is asked."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.name, self.capability = "NVIDIA H100 80GB HBM3", (9, 0)
        self.capturing = self.full = False
        self.milliseconds = {1: 3.0, 2: 1.0, 4: 2.0}
        self.asked: list[int] = []
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(torch.cuda, "get_device_name", lambda device: self.name)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        patch.setattr(launching, "_bench", lambda function: function())

    def trial(self):
        return self.run

    def run(self, c: Configuration) -> float:
        self.asked.append(c.blocks["BLOCK"])
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256 MiB")
        if (time := self.milliseconds[c.blocks["BLOCK"]]) == math.inf:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return time

    def pick(self, tuner: Tuner | None = None, shape: tuple = (50304, torch.bfloat16)) -> int:
        return (tuner or Tuner(KERNEL, CONFIGURATIONS)).pick(CUDA, shape, self.trial).blocks["BLOCK"]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    return Card(monkeypatch, tmp_path)


def test_the_fastest_is_picked_and_remembered(card: Card) -> None:
    tuner = Tuner(KERNEL, CONFIGURATIONS)
    assert [card.pick(tuner), card.pick(tuner)] == [2, 2]
    assert card.asked == [1, 2, 4]


def test_another_process_finds_the_answer_on_disk(card: Card) -> None:
    assert [card.pick(), card.pick()] == [2, 2]
    assert card.asked == [1, 2, 4]


@pytest.mark.parametrize("change", ["card", "shape", "source", "configurations"])
def test_what_may_decide_is_part_of_the_question(card: Card, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card.pick()
    card.milliseconds = {1: 1.0, 2: 3.0, 4: 2.0}
    shape = (50304, torch.bfloat16)
    kernel, configurations = KERNEL, CONFIGURATIONS
    if change == "card":
        card.name = "NVIDIA H100 PCIe"
    elif change == "shape":
        shape = (50304, torch.float32)
    elif change == "source":
        kernel = SimpleNamespace(cache_key="another", __name__="some_kernel")
    else:
        configurations = CONFIGURATIONS[:2]
    assert card.pick(Tuner(kernel, configurations), shape) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"milliseconds": [1.0]}', '{"milliseconds": null}', "\0\xff"])
def test_a_damaged_answer_is_measured_again(card: Card, damage: str, tmp_path: Path) -> None:
    card.pick()
    (file,) = tmp_path.rglob("*.json")
    file.write_text(damage)
    assert card.pick() == 2 and card.asked == [1, 2, 4] * 2
    assert card.pick() == 2 and len(card.asked) == 6  # mended


def test_without_a_place_to_write_it_still_tunes(card: Card, tmp_path: Path) -> None:
    (tmp_path / "stepladder").write_text("a file stands here")
    assert [card.pick(), card.pick()] == [2, 2] and len(card.asked) == 6


def test_what_does_not_fit_is_passed_over(card: Card) -> None:
    card.milliseconds[2] = math.inf
    assert card.pick() == 4
    card.milliseconds = dict.fromkeys(card.milliseconds, math.inf)
    with pytest.raises(RuntimeError, match="no configuration of some_kernel fits NVIDIA H100"):
        card.pick(shape=(1,))


def test_nothing_is_measured_where_nothing_can_be(card: Card) -> None:
    card.capturing = True
    assert card.pick() == 1 and not card.asked
    card.capturing = False
    assert card.pick(Tuner(KERNEL, CONFIGURATIONS[:1])) == 1 and not card.asked
    tuner = Tuner(KERNEL, CONFIGURATIONS)
    assert tuner.pick(torch.device("cpu"), (1,), card.trial) is CONFIGURATIONS[0] and not card.asked
    assert card.pick(tuner) == 2  # capturing left nothing behind
    card.capturing = True
    assert card.pick(tuner) == 2  # and what a warm-up has picked is what is captured


def test_a_full_card_is_no_reason_to_fail(card: Card, tmp_path: Path) -> None:
    """Tuning takes scratch memory beside a training that may just fit."""
    card.full, tuner = True, Tuner(KERNEL, CONFIGURATIONS)
    with pytest.warns(UserWarning, match="NVIDIA H100 .* has no memory left to time some_kernel in; it runs untuned"):
        assert card.pick(tuner) == 1
    assert card.pick(tuner) == 1 and card.asked == [1]  # trying in every step would slow all of them down
    assert not list(tmp_path.rglob("*.json"))
    card.full = False
    assert card.pick() == 2  # another process tries again


def test_whether_a_card_can_run_kernels_is_asked_once(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of a kernel wants to know, and looking for a compiler takes longer than a launch."""
    looked: list[str] = []
    monkeypatch.setattr("kernels.shutil.which", lambda name: looked.append(name) or f"/usr/bin/{name}")
    launching._unavailable_on.cache_clear()
    for _ in range(3):
        require_device(SimpleNamespace(device=CUDA))
    assert len(looked) == 1
    launching._unavailable_on.cache_clear()


def test_cards_see_only_what_fits_their_shared_memory(card: Card) -> None:
    small, large = Configuration(), Configuration(shared_kib=227)
    assert usable((small, large), (9, 0)) == [small, large]
    for capability in ((8, 0), (8, 6), (8, 9), (12, 0), (99, 0)):
        assert usable((small, large), capability) == [small]
    assert small.shared_kib == min(SHARED_KIB.values())


# -- what every kernel does with it -----------------------------------------------------------------------------------


def differentiated(function: Callable, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Outputs and gradients."""
    leaves = [draw(*shape, dtype=HALF, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    returned = function(*leaves)
    outputs = [returned] if isinstance(returned, Tensor) else list(returned)
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
    return [*outputs, *(leaf.grad for leaf in leaves)]


def optimized(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Parameters after a clipped step."""
    parameters = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    optimizer = FlatAdamW(parameters)
    sum(p.square().sum() for p in parameters).backward()
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    return parameters


def losses() -> list[Tensor]:
    logits = draw(2, 5, dtype=HALF)
    return [cross_entropy.cross_entropy_(logits, torch.tensor([1, 2], device=DEVICE), vocab_size=5), logits]


HALF = torch.float16
USES = {
    "cross_entropy": losses,
    "layer_norm": lambda: differentiated(layer_norm.residual_layer_norm, (2, 8), (2, 8), (8,), (8,)),
    "bias_gelu": lambda: differentiated(bias_gelu.bias_gelu, (2, 8), (8,)),
    "linear_gelu": lambda: differentiated(linear_gelu.mlp, (2, 8), (8, 8), (8,), (8, 8), (8,)),
    "flash_attention": lambda: differentiated(flash_attention.flash_attention, (1, 4, 3, 1, 32)),
    "adamw": lambda: optimized((4, 3), (3,)),
}


@pytest.mark.parametrize("use", USES)
def test_every_trial_runs_and_leaves_no_trace(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor nothing is timed, so what is timed on a GPU is called here by hand."""
    expected, tried = USES[use](), []

    def pick(self: Tuner, device: torch.device, shape: tuple, trial: Callable) -> Configuration:
        hash(shape)
        run, choices = trial(), self.configurations
        if device.type == "cuda":
            choices = usable(choices, torch.cuda.get_device_capability(device))
        tried.extend((run(c), c) for c in choices)
        return self.configurations[0]

    monkeypatch.setattr(Tuner, "pick", pick)
    for module in (cross_entropy, layer_norm, bias_gelu):
        monkeypatch.setattr(module, "TRIAL_ROWS", 3)
    monkeypatch.setattr(linear_gelu, "TRIAL_ROWS", (4, 8))
    monkeypatch.setattr(adamw, "TRIAL_CHUNKS", 1)
    found = USES[use]()
    assert len(tried) >= 3 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("use", USES)
def test_every_launch_happens_on_its_tensors_device(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, whatever GPU the tensors are on."""
    current: list[str] = []
    launched: list[list[str]] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.device.type)
        yield
        current.pop()

    kind = type(adamw.adamw_kernel)
    launch = kind.__getitem__
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kind, "__getitem__", lambda kernel, grid: launched.append([*current]) or launch(kernel, grid))
    USES[use]()
    assert len(launched) >= (1 if use == "cross_entropy" else 2) and all(on[-1:] == [DEVICE.type] for on in launched)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("use", USES)
def test_the_second_gpu_is_as_good_as_the_first(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(draw.__globals__, "DEVICE", torch.device("cuda", 1))
    monkeypatch.setitem(globals(), "DEVICE", torch.device("cuda", 1))
    USES[use]()
    torch.cuda.synchronize(1)
