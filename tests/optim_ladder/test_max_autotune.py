"""The compiler with its search: what it is asked for, and that the training stays the same."""

from dataclasses import replace

import pytest
import torch

from hardware import detect
from model import MODELS
from optim_ladder import Settings, Workload, build, rung

CPU = detect("cpu")
WORKLOAD = Workload(model="pico", vocab_size=67, micro_batch=2, seq_len=16)


def test_it_searches_and_records_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda module, **keywords: asked.update(keywords) or module)
    rung("max_autotune").compile(torch.nn.Linear(1, 1))
    found = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
    assert asked == {"options": found} and found["max_autotune"] and found["coordinate_descent_tuning"]


@pytest.mark.soak
def test_training_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "pico", replace(MODELS["pico"], n_layer=1))
    torch._dynamo.reset()
    tokens = torch.randint(67, (2, 17), generator=torch.Generator().manual_seed(0))

    def losses(*rungs: str) -> list[float]:
        with build(Settings(workload=WORKLOAD, rungs=rungs), CPU) as step:
            return [step([(tokens[:, :-1], tokens[:, 1:])])[0].item() for _ in range(3)]

    assert losses("max_autotune", "flash") == pytest.approx(losses("flash"), abs=1e-5)
    assert torch._inductor.config.max_autotune is False  # asked for with the module alone
