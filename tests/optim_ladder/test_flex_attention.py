"""The compiler's attention: its tables of tiles, its result and gradient, and where it can be used."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch

from hardware import detect
from model import GPT2, MODELS, GPT2Config, flex
from model.gpt2 import ATTENTION, written_out_attention
from optim_ladder import Settings, Workload, build, rung
from tests.optim_ladder.devices import CPU, H100, T4

WORKLOAD = Workload(model="nano", vocab_size=67, micro_batch=2, seq_len=256)


@pytest.fixture
def on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses gradients there for want of a kernel; its written-out form has them."""
    monkeypatch.setattr(of_torch, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()


def traced(function: Callable) -> Callable:
    """As the compiler sees it, in one graph, but carried out operation by operation."""
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("T", [128, 256, 640])
def test_the_tables_are_those_that_pytorch_finds(T: int) -> None:
    ours = flex.causal_tiles(T, torch.device("cpu"))
    theirs = of_torch.create_block_mask(flex.causal, None, None, T, T, device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for side in ("kv", "full_kv", "q", "full_q"):
        counts, expected = getattr(ours, f"{side}_num_blocks"), getattr(theirs, f"{side}_num_blocks")
        assert torch.equal(counts, expected) and counts.dtype == expected.dtype
        tiles, expected = getattr(ours, f"{side}_indices"), getattr(theirs, f"{side}_indices")
        assert (tiles.shape, tiles.stride(), tiles.dtype) == (expected.shape, expected.stride(), expected.dtype)
        for row, count in enumerate(counts[0, 0].tolist()):  # what comes after is never looked at
            assert torch.equal(tiles[0, 0, row, :count], expected[0, 0, row, :count])
            assert 0 <= tiles.min() and tiles.max() < T // 128


def result_and_gradient(attention: Callable[[Tensor], Tensor], qkv: Tensor) -> tuple[Tensor, Tensor]:
    y = attention(qkv)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y, torch.autograd.grad(y, qkv, direction)[0]


def test_it_is_attention(on_a_processor: None) -> None:
    qkv = torch.randn(2, 256, 3, 2, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = result_and_gradient(lambda x: written_out_attention(x, 0.0), qkv)
    for found, right in zip(result_and_gradient(traced(flex.causal_attention), qkv), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


def test_a_rule_that_sees_the_future_is_found(on_a_processor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: what is held against each other are two masks."""
    monkeypatch.setattr(flex, "causal", lambda batch, head, query, key: query + 1 >= key)
    qkv = torch.randn(1, 128, 3, 2, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(traced(flex.causal_attention)(qkv), written_out_attention(qkv, 0.0), atol=1e-2)


def test_a_model_with_it_is_one_graph(on_a_processor: None) -> None:
    config = GPT2Config(n_layer=3, n_head=2, n_embd=64, n_positions=128, vocab_size=67)
    torch.manual_seed(0)
    plain = GPT2(config)
    model = GPT2(replace(config, attention="flex"))
    model.load_state_dict(plain.state_dict())
    idx = torch.randint(67, (1, 128), generator=torch.Generator().manual_seed(0))
    loss, expected = traced(model)(idx, idx.roll(-1, 1)), plain(idx, idx.roll(-1, 1))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    expected.backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_what_is_not_compiled_takes_sdpa() -> None:
    """Sampling asks for a length at a time, and uncompiled, flex would hold all scores."""
    qkv = torch.randn(1, 77, 3, 2, 64)
    assert torch.equal(ATTENTION["flex"](qkv, 0.0), ATTENTION["sdpa"](qkv, 0.0))
    with pytest.raises(ValueError, match="dropout is 0.1, which attention 'flex' does not have"):
        ATTENTION["flex"](qkv, 0.1)
    with pytest.raises(ValueError, match="sequence length is 77, no multiple of 128"):
        flex.causal_attention(qkv)


def test_where_it_cannot_run_it_says_why() -> None:
    unavailable = rung("flex_attention").unavailable
    assert unavailable(H100, WORKLOAD) is None
    assert all("compute capability 8.0" in unavailable(device, WORKLOAD) for device in (T4, CPU))
    assert "no attention" in unavailable(H100, replace(WORKLOAD, model="char-bigram"))
    assert "no dropout" in unavailable(H100, replace(WORKLOAD, dropout=0.1))
    assert "multiples of 128 tokens; the sequences have 200" in unavailable(H100, replace(WORKLOAD, seq_len=200))
    assert MODELS["stories"].n_embd // MODELS["stories"].n_head == 192
    assert unavailable(H100, replace(WORKLOAD, model="stories")).endswith("32, 64, 128; this model has 192")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [(), ("bf16",), ("bf16_weights",)], ids="+".join)
def test_on_a_gpu_it_trains_alike(precision: tuple[str, ...]) -> None:
    device = detect("cuda")
    if reason := rung("flex_attention").unavailable(device, WORKLOAD):
        pytest.skip(reason)
    tokens = torch.randint(67, (4, 2, 257), generator=torch.Generator().manual_seed(0)).to(device.torch_device())

    def losses(*rungs: str) -> list[float]:
        torch._dynamo.reset()
        with build(Settings(workload=WORKLOAD, rungs=(*precision, "compile", *rungs)), device) as step:
            return [step([(rows[:, :-1], rows[:, 1:])])[0].item() for rows in tokens]

    assert losses("flex_attention") == pytest.approx(losses(), abs=5e-3 if precision else 1e-4)
