"""The processes of one run: joining them, deciding alike, and noticing the one that has stopped.

torchrun starts the processes and tells each who it is. Every process keeps writing down where it is; one that makes no progress
within the time limit is named by those that wait for it, which leave the stacks of their threads behind and end, so that torchrun
can start all of them anew.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

from hardware import Device

T = TypeVar("T")

POLL_S = 1.0
LEAVE_S = 5.0


class Relayed(ValueError):
    """An error that rank 0 has met and tells; the others end without a word."""

    relayed = True


class Ranks:
    """This process among its likes; a context manager. One process alone needs no torchrun, and everything here is free then.

    Args:
        device: what the processes run on: NCCL joins GPUs, gloo everything else.
        time_limit_s: without progress for so long, a process counts as stopped.
        stacks: folder for the stacks of the threads in that case.

    Attributes:
        rank, local_rank, world_size: as torchrun numbers them.
    """

    def __init__(self, device: Device, *, time_limit_s: float, stacks: Path) -> None:
        self.device, self.time_limit_s, self.stacks = device, time_limit_s, stacks
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self._store: dist.Store | None = None
        self._place, self._since = "start", time.monotonic()
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.world_size > 1:
            if self.device.kind == "cuda":
                if self.local_rank >= self.device.count:
                    raise ValueError(
                        f"process {self.local_rank + 1} of this machine finds {self.device.count} GPUs; start fewer with --nproc_per_node"
                    )
                torch.cuda.set_device(self.local_rank)
            if self.device.kind == "cpu":  # torchrun gives each one thread, whatever cores there are
                torch.set_num_threads(max(1, self.device.count // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
            # These functions take the group of the moment in which they are first imported as a default value, and keep it. Left to
            # DistributedDataParallel, that moment comes when there is one, which then outlives destroy_process_group.
            from torch.distributed.nn import functional  # noqa: F401

            backend = "cpu:gloo,cuda:nccl" if self.device.kind == "cuda" else "gloo"
            limit = timedelta(days=7)  # the watcher below gives up long before, can name who is missing, and knows who is only busy
            store, _, _ = next(dist.rendezvous("env://", timeout=limit))
            # torchrun's store outlives a restart of the processes: each start has a part of its own.
            restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"stepladder-{restart}", store)
            dist.init_process_group(
                backend, store=self._store, rank=self.rank, world_size=self.world_size, timeout=limit
            )
            self._watcher = threading.Thread(target=self._watch, name="watcher of ranks", daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Ends the group, and with it gloo's threads.

        One that still holds a collective's tensor gives it back under Python's lock; were the interpreter at its end by then, the
        C++ runtime would abort the process. The group ends with its last holder, so a DistributedDataParallel must be gone before.
        """
        self._over.set()
        if self._watcher is None:
            return
        self._watcher.join()
        if error is None:
            dist.destroy_process_group()
        elif self.device.kind != "cuda":  # NCCL's end may need the others, and they may be anywhere
            for met in _chain(error):
                traceback.clear_frames(met.__traceback__)  # their variables hold the model
            leaving = threading.Thread(target=dist.destroy_process_group, name="leaving", daemon=True)
            leaving.start()
            leaving.join(LEAVE_S)  # a collective that was under way waits for the others, for ever at worst

    def at(self, place: str) -> None:
        """Notes progress: where this process is now, in words."""
        self._place, self._since = place, time.monotonic()

    def agreed(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def first_does(self, work: Callable[[], T]) -> T:
        """Runs something on rank 0 alone and gives its result to all; an error there is raised everywhere.

        Raises:
            ValueError: what rank 0 raised as ValueError or OSError; the other ranks raise `Relayed`.
        """
        if self.world_size == 1:
            return work()
        result, problem = None, None
        if self.first:
            try:
                result = work()
            except (ValueError, OSError) as error:
                problem = error
        result, message = self.agreed((result, None if problem is None else str(problem)))
        if problem is not None:
            raise problem
        if message is not None:
            raise Relayed(message)
        return result

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's numbers, in place on every rank; returns it."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank; every rank must ask."""
        return self.sum_(torch.tensor(float(flag))).item() > 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds a tensor up over the ranks, in place and in stream order; returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    # -- noticing who has stopped ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self._store is not None
        while not self._over.wait(min(POLL_S, self.time_limit_s / 4)):
            try:
                self._store.set(f"place-{self.rank}", f"{time.monotonic() - self._since:.1f} {self._place}")
                self._store.set(f"alive-{self.rank}", str(time.time()))
            except RuntimeError:  # the store's process has gone: torchrun is ending the run
                return
            if time.monotonic() - self._since > self.time_limit_s and not self._someone_moves():
                self._give_up()

    def _others(self) -> dict[int, tuple[float, float, str]]:
        """rank -> seconds since it made progress, seconds since it was heard from, where it was; without those never heard from."""
        assert self._store is not None
        seen = {}
        for rank in (r for r in range(self.world_size) if r != self.rank):
            if self._store.check([f"alive-{rank}"]):
                quiet_s = time.time() - float(self._store.get(f"alive-{rank}"))
                stuck_s, place = self._store.get(f"place-{rank}").decode().split(" ", 1)
                seen[rank] = (float(stuck_s) + quiet_s, quiet_s, place)
        return seen

    def _someone_moves(self) -> bool:
        """Whether this process waits for one that is busy, as all do while the first prepares data for hours."""
        return any(stuck_s < self.time_limit_s for stuck_s, _, _ in self._others().values())

    def _give_up(self) -> None:
        """Says who is missing, leaves this process's stacks behind, ends it."""
        self.stacks.mkdir(parents=True, exist_ok=True)
        path = self.stacks / f"rank-{self.rank}.txt"
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        print(
            f"error: rank {self.rank} has waited {self.time_limit_s:g} s in {self._place!r}: {self._missing()}; "
            f"stacks in {path}; start again with --resume, or raise train.time_limit_s if it is just slow",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread hangs in a collective that nothing can interrupt

    def _missing(self) -> str:
        """Which of the other ranks has stopped or is behind, as far as their last words tell."""
        seen, silent, behind = self._others(), [], []
        for rank in (r for r in range(self.world_size) if r != self.rank):
            if rank not in seen:
                silent.append(f"rank {rank} has not been heard from")
                continue
            stuck_s, quiet_s, place = seen[rank]
            if quiet_s > max(3 * POLL_S, self.time_limit_s / 2):
                silent.append(f"rank {rank} has been silent for {quiet_s:.0f} s, last in {place!r}")
            elif place != self._place:
                behind.append(f"rank {rank} has been in {place!r} for {stuck_s:.0f} s")
        return "; ".join(silent or behind) or "every other rank is there and waits too"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
