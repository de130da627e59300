"""The validation loss: a mean over tokens, the same for any number of processes."""

import numpy as np
import pytest
import torch

from evals import validation_loss

CPU = torch.device("cpu")


def windows(num: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Batches of (2, 3) sequences, some of whose targets do not count."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(num):
        idx, targets = rng.integers(0, 9, (2, 3)), rng.integers(0, 9, (2, 3))
        targets[1, rng.integers(0, 4) :] = -100
        made.append((idx, targets, int((targets >= 0).sum())))
    return made


def mean_target(idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return targets[targets >= 0].float().mean()


def test_every_token_weighs_the_same() -> None:
    made = windows(5)
    every = np.concatenate([t[t >= 0] for _, t, _ in made])
    loss, tokens = validation_loss(mean_target, made, target=CPU)
    assert tokens == len(every) and loss == pytest.approx(every.mean(), rel=1e-6)
    assert loss != pytest.approx(np.mean([t[t >= 0].mean() for _, t, _ in made]), rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_number_of_processes_changes_no_bit(world_size: int) -> None:
    made, parts = windows(5), []
    for rank in range(world_size):
        with pytest.raises(StopIteration):  # what each process would add up
            validation_loss(
                mean_target, made, target=CPU, rank=rank, world_size=world_size,
                add_up=lambda tensor: parts.append(tensor.clone()) or next(iter(())),
            )  # fmt: skip
    together = torch.stack(parts).sum(0)
    loss, _ = validation_loss(
        mean_target, made, target=CPU, rank=0, world_size=world_size, add_up=lambda tensor: tensor.copy_(together)
    )
    assert loss == validation_loss(mean_target, made, target=CPU)[0]


def test_it_can_be_left_in_the_middle_and_needs_text() -> None:
    seen = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validation_loss(mean_target, windows(5), target=CPU, between=stop)
    with pytest.raises(ValueError, match="no text to evaluate on"):
        validation_loss(mean_target, [], target=CPU)
