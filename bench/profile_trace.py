"""From a trace, as torch.profiler exports it, to what ran on the device and for how long; plain Python, no torch.

A trace is a list of events with a start and a duration in microseconds. On the host they are operators (``cpu_op``),
nested in time within a thread, and marks of our own (``user_annotation``). On a GPU they are kernels, copies and fills,
one row per stream. A device's event names the operator that launched it (``External id``) and the call of the driver
(``correlation``). On a processor the operators are the work: each counts without those that it calls.

One step more than wanted is traced: the time from the first kernel of a step to the first of the next is a whole step,
idle time included, and the last one has no next.

Source: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (the trace event format)
"""

import bisect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.profile_sums import Key, Span, Traced, add_up, middle_half
from results.profiles import PHASES

STEP = "stepladder step"
MARKS = {f"stepladder {phase}": phase for phase in PHASES if phase}
DEVICE_KINDS = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "fill"}
LAUNCHES = ("cuda_runtime", "cuda_driver")
# Around operators, and no work themselves.
WRAPPERS = re.compile(
    r"^(?:autograd::engine|CompiledFunction|Torch-Compiled Region|TorchDynamo|Pregraph|AOTDispatcher|##)"
)
NODE = "autograd::engine::evaluate_function: "


@dataclass(kw_only=True, eq=False)
class Host:
    """An operator or a mark on the host; times in microseconds."""

    name: str
    start: float
    end: float
    is_operator: bool
    shapes: list[list[int]]
    external_id: int | None
    parent: "Host | None" = None
    children: list["Host"] = field(default_factory=list)

    def path(self) -> list["Host"]:
        """Itself and all around it, outermost first."""
        return [*(self.parent.path() if self.parent else []), self]


def read(trace: Mapping[str, Any], *, num_steps: int, on_gpu: bool) -> Traced:
    """What ran in ``num_steps`` steps.

    Args:
        trace: the parsed JSON.
        num_steps: whole steps in the trace; one more is marked.
        on_gpu: the device is a GPU; else its operators are the work.

    Raises:
        ValueError: the trace lacks the steps, or has no kernels.
    """
    events = [e for e in trace.get("traceEvents", []) if e.get("ph") == "X"]
    threads = host_threads(events)
    hosts = [host for thread in threads.values() for host in thread]
    steps = sorted((h for h in hosts if h.name == STEP), key=lambda h: h.start)
    if len(steps) != num_steps + 1:
        raise ValueError(f"the trace has {len(steps)} steps of {num_steps + 1}; trace fewer with --steps")
    marks = Marks(hosts)
    if on_gpu:
        spans, begins, flags = of_gpu(events, threads, [s.start for s in steps], marks)
    else:
        spans, begins, flags = list(of_processor(hosts, marks)), [s.start for s in steps], []
    return add_up(spans, middle_half(list(pairwise(begins))), flags)


# -- the host --------------------------------------------------------------------------------------------------------


def host_threads(events: Iterable[Mapping[str, Any]]) -> dict[Any, list[Host]]:
    """Operators and marks by thread, in order of start, nested."""
    threads: dict[Any, list[Host]] = defaultdict(list)
    for e in events:
        if e.get("cat") in ("cpu_op", "user_annotation"):
            arguments = e.get("args", {})
            host = Host(
                name=e["name"], start=e["ts"], end=e["ts"] + e["dur"], is_operator=e["cat"] == "cpu_op",
                shapes=tensor_shapes(arguments.get("Input Dims", [])), external_id=arguments.get("External id"),
            )  # fmt: skip
            threads[e.get("tid")].append(host)
    for thread in threads.values():
        thread.sort(key=lambda h: (h.start, -h.end))
        around: list[Host] = []
        for host in thread:
            while around and around[-1].end <= host.start:
                around.pop()
            if around:
                host.parent = around[-1]
                around[-1].children.append(host)
            around.append(host)
    return threads


def tensor_shapes(dims: Any) -> list[list[int]]:
    """Shapes of the inputs that are tensors; those of a list of tensors too."""
    found = []
    for dim in dims if isinstance(dims, list) else []:
        if isinstance(dim, list) and dim:
            found += tensor_shapes(dim) if isinstance(dim[0], list) else [dim]
    return found


class Marks:
    """Which phase of a step the host was in at some moment; the backward pass may launch from a thread of its own."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.found = sorted((h for h in hosts if h.name in MARKS), key=lambda h: h.start)
        self.starts = [h.start for h in self.found]

    def at(self, moment: float) -> str:
        """The innermost mark's phase, "" outside all of them."""
        begun = reversed(self.found[: bisect.bisect_right(self.starts, moment)])
        return next((MARKS[mark.name] for mark in begun if moment < mark.end), "")


def launched_by(host: Host | None) -> tuple[str, ...]:
    """Names of operators, outermost first, an autograd node once."""
    names = [h.name.removeprefix(NODE) for h in host.path() if h.is_operator] if host else []
    names = [name for name in names if not WRAPPERS.search(name)]
    return tuple(name for i, name in enumerate(names) if not i or name != names[i - 1])


def key_of(name: str, kind: str, phase: str, host: Host | None, neighbours: Sequence[str] = ()) -> Key:
    """What is known of some work; a wrapper's inputs are everybody's, and tell nothing."""
    path = launched_by(host)
    known = path and phase != "update" and not WRAPPERS.search(host.name.removeprefix(NODE))
    return Key(
        name=name,
        kind=kind,
        phase=phase,
        launched_by=path,
        shapes=tuple(tuple(shape) for shape in host.shapes) if known else (),
        neighbours=() if path or phase == "update" else tuple(neighbours),
    )


# -- the device ------------------------------------------------------------------------------------------------------


def of_processor(hosts: Iterable[Host], marks: Marks) -> Iterable[Span]:
    """Every operator, for the time in which it calls no other."""
    for host in hosts:
        if host.is_operator and not WRAPPERS.search(host.name):
            key = key_of(host.name, "operator", marks.at(host.start), host)
            edges = [host.start, *(edge for child in host.children for edge in (child.start, child.end)), host.end]
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                yield Span(start=start, end=max(start, end), call=host, key=key)


def of_gpu(
    events: Sequence[Mapping[str, Any]], threads: Mapping[Any, list[Host]], steps: Sequence[float], marks: Marks
) -> tuple[list[Span], list[float], list[str]]:
    """Every kernel, copy and fill, the start of each step's first one, and what could not be told."""
    launches = {
        e["args"]["correlation"]: e for e in events if e.get("cat") in LAUNCHES and "correlation" in e.get("args", {})
    }
    by_id = {
        h.external_id: h for thread in threads.values() for h in thread if h.external_id is not None and h.is_operator
    }
    work = sorted((e for e in events if e.get("cat") in DEVICE_KINDS), key=lambda e: e["ts"])
    names = ["", "", *(e["name"] for e in work), ""]
    spans, unknown = [], 0.0
    first: dict[int, float] = {}  # step -> start of the first kernel launched in it
    for i, e in enumerate(work):
        arguments = e.get("args", {})
        launch = launches.get(arguments.get("correlation"))
        host = by_id.get(arguments.get("External id")) or (
            launch and innermost(threads.get(launch.get("tid"), []), launch["ts"])
        )
        moment = launch["ts"] if launch else host.start if host else None
        if moment is not None and (step := bisect.bisect_right(steps, moment) - 1) >= 0:
            first.setdefault(step, e["ts"])
        phase = "" if moment is None else marks.at(moment)
        key = key_of(e["name"], DEVICE_KINDS[e["cat"]], phase, host, [names[i], names[i + 1], names[i + 3]])
        unknown += e["dur"] * (not key.launched_by)
        spans.append(Span(start=e["ts"], end=e["ts"] + e["dur"], call=e, key=key))
    if not any(span.key.kind == "kernel" for span in spans):
        raise ValueError(
            "the profiler saw no kernel on this GPU; end other profilers of it, or ask for permission to trace here"
        )
    if len(first) < len(steps):
        raise ValueError("the trace does not tell which step launched a kernel, so no step can be cut out of it")
    share = unknown / sum(span.end - span.start for span in spans)
    flags = (
        [f"{100 * share:.0f} % of the kernels' time was launched by no known operator, and is told by names alone"]
        if share >= 0.005
        else []
    )
    return spans, [first[step] for step in range(len(steps))], flags


def innermost(thread: Sequence[Host], moment: float) -> Host | None:
    """The operator that ran at some moment in a thread."""
    i = bisect.bisect_right(thread, moment, key=lambda h: h.start) - 1
    host = thread[i] if i >= 0 else None
    while host and not (host.is_operator and moment < host.end):
        host = host.parent
    return host
