"""Batches made ready ahead of time: read and shuffled in a thread of its own, pinned, and sent while the device computes."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor

from data.loader import Cursor, Loader

AHEAD = 2  # steps made ready; more only takes memory


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One optimizer step's share of this process.

    Args:
        micro_batches: (idx, targets) each (B, T) int64 on the device.
        counts: targets that count, per micro-batch.
        total: targets that count, over all micro-batches of all processes.
        cursor: where the data goes on after this step.
        epoch: passes over the corpus after this step.
    """

    micro_batches: list[tuple[Tensor, Tensor]]
    counts: list[int]
    total: int
    cursor: Cursor
    epoch: float


class Feed:
    """An endless iterator of `Batch`; a context manager that ends its thread.

    Args:
        loader: where batches come from.
        target: device to send them to.
    """

    def __init__(self, loader: Loader, target: torch.device) -> None:
        self.loader, self.target = loader, target
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(AHEAD)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        while self._thread.is_alive():  # it may be waiting to put one more
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                pass
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next step's batch.

        Raises:
            ValueError: the data is damaged; whatever the loader raised.
        """
        batch = self._ready.get()
        if isinstance(batch, Exception):
            raise batch
        sent = [tuple(t.to(self.target, non_blocking=True) for t in pair) for pair in batch.micro_batches]
        return replace(batch, micro_batches=sent)

    def _fill(self) -> None:
        try:
            for step in self.loader:
                pairs = [tuple(torch.from_numpy(array) for array in pair) for pair in step.micro_batches]
                if self.target.type == "cuda":
                    pairs = [tuple(tensor.pin_memory() for tensor in pair) for pair in pairs]
                self._ready.put(
                    Batch(micro_batches=pairs, counts=step.counts, total=step.total, cursor=step.cursor, epoch=step.epoch)
                )
                if self._over.is_set():
                    return
        except Exception as error:  # raised again in the thread that asks for batches
            self._ready.put(error)
