"""How a profile is worded, the same in chart, tables and README; the largest gaps as sentences."""

import re
from dataclasses import dataclass

from plots import text
from results.gaps import Breakdown, Item, Part, breakdown
from results.parts import COMMUNICATION, IDLE, OTHER, Sizes, parts_of
from results.profiles import Kernel, Profile

LONGEST_NAME, END_OF_NAME = 60, 14  # characters; what is longer loses its middle
NUM_GAPS = 3  # that are named
NOTHING = 5e-4  # of the step: a difference that rounding makes
UNNEEDED = {COMMUNICATION: "that a single process does without", OTHER: "in what no rule knows"}


def rungs(profile: Profile) -> str:
    """bf16 + compile."""
    return " + ".join(profile.rungs) or "fp32 baseline"


def heading(profile: Profile) -> str:
    """NVIDIA H100 · gpt2 · micro-batch 64 × 1024 tokens · vocabulary 50,257 · bf16 + compile."""
    return f"{profile.device['name']} · {text.workload(profile)} · {rungs(profile)}"


def limits(profile: Profile) -> str:
    """What the bounds are made of."""
    if profile.roofline is None:
        return "No bounds: this device's peaks are not known."
    dtype, peaks = profile.roofline["dtype"], profile.roofline["peaks"]
    rate, bandwidth = profile.peaks[peaks]["tflops"][dtype], profile.peaks[peaks]["bandwidth_gbps"]
    whose = {"measured": "both measured", "datasheet": "by the data sheet"}[peaks]
    return f"Bounds: products at {rate:,.3g} TFLOP/s in {dtype}, bytes at {bandwidth:,.0f} GB/s, {whose}."


def fused(profile: Profile) -> str:
    """How a kernel's time is divided among the parts it was fused from."""
    how = "equally" if profile.roofline is None else "in proportion to their bounds"
    return f"A kernel that the compiler fused from several parts counts for them {how}."


def accounts(profile: Profile, found: Breakdown) -> str:
    """What the parts add up to, and how far that is from the step without the profiler."""
    off = abs(found.off_ms) / found.step_ms
    if off < NOTHING:
        total = f"The parts add up to the step without the profiler, {text.milliseconds(found.step_ms)}"
    else:
        more = "more" if found.off_ms > 0 else "less"
        step = f"the {text.milliseconds(found.step_ms)} that a step takes without the profiler"
        total = f"The parts add up to {text.milliseconds(found.total_ms)}, {text.share(off)} {more} than {step}"
    busy, traced = text.milliseconds(profile.busy_ms), text.milliseconds(profile.traced_step_ms)
    return f"{total}; with it, {_work(profile)}s run in {busy} of {traced}."


def provenance(profile: Profile) -> str:
    """Commit, date, and how much was traced."""
    commit, dirty = profile.environment.get("commit"), profile.environment.get("dirty")
    parts = [
        f"commit {commit[:9]}{' with uncommitted changes' if dirty else ''}" if commit else "",
        profile.created_utc[:10],
        f"the middle {profile.num_counted} of {profile.num_steps} traced steps",
        f"{len(profile.trial.device_ms)} timed blocks",
    ]
    return " · ".join(part for part in parts if part)


def bound(part: Part) -> str:
    """5.4 ms; – where nothing is needed, or it is not known what."""
    return text.milliseconds(part.bound_ms) if part.bound_ms else text.NONE


def gap(part: Part) -> str:
    """+3.2 ms, −0.41 ms."""
    if part.gap_ms is None:
        return text.NONE
    return f"{'−' if part.gap_ms < 0 else '+'}{text.milliseconds(abs(part.gap_ms))}"


def over(part: Part) -> str:
    """3.41×: how many times its bound."""
    return text.NONE if part.over is None else text.times(part.over)


def row(part: Part, step: Breakdown) -> list[str]:
    """Name, time, bound, gap, times its bound, share of the step: the cells that every table of parts begins with."""
    share = text.share(part.ms / step.total_ms)
    return [part.name, text.milliseconds(part.ms), bound(part), gap(part), over(part), share]


# -- kernels ---------------------------------------------------------------------------------------------------------


def called(kernel: Kernel) -> str:
    """A kernel's name without types and namespaces, and the operator that launched it where that is another name."""
    name = re.sub(r"^graph_\d+_(?=cpp_fused)", "", kernel.name)
    if kernel.kind != "operator":
        bare = name.removeprefix("void ")
        while (shorter := re.sub(r"<[^<>]*>|\([^()]*\)", "", bare)) != bare:
            bare = shorter
        name = re.split(r"[<(]", bare)[0].split("::")[-1].strip() or name
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - END_OF_NAME - 1]}…{name[-END_OF_NAME:]}"
    by = kernel.launched_by[-1] if kernel.launched_by else kernel.name
    return name if by == kernel.name else f"{name} ({by})"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Kernels that a reader would call the same; per step."""

    name: str
    part: str
    phase: str
    kernels: list[Kernel]

    @property
    def calls(self) -> float:
        return sum(kernel.calls for kernel in self.kernels)

    @property
    def ms(self) -> float:
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def share_ms(self) -> float:
        return sum(kernel.share_ms for kernel in self.kernels)


def lines(profile: Profile) -> list[Line]:
    """All kernels, the longest first; those that differ in shapes alone together."""
    sizes, together = Sizes.of(profile), {}
    for kernel in profile.kernels:
        key = called(kernel), " + ".join(parts_of(kernel, sizes)), kernel.phase
        together.setdefault(key, []).append(kernel)
    found = [Line(name=n, part=part, phase=phase, kernels=kernels) for (n, part, phase), kernels in together.items()]
    return sorted(found, key=lambda line: -line.share_ms)


# -- sentences -------------------------------------------------------------------------------------------------------


def sentences(profile: Profile) -> list[str]:
    """The largest gaps, one sentence each, the worst first; fewer where fewer parts take more than their bound."""
    found = breakdown(profile)
    return [_sentence(part, found, profile) for part in found.parts[:NUM_GAPS] if part.gain_ms > 0]


def _sentence(part: Part, found: Breakdown, profile: Profile) -> str:
    name = part.name[0].upper() + part.name[1:]
    ms, share = text.milliseconds(part.ms), f"{text.share(part.ms / found.total_ms)} of the step"
    if part.name == IDLE:
        return f"{name}: for {ms}, {share}, no {_work(profile)} runs."
    by_name: dict[str, list[Item]] = {}
    for item in part.items:
        by_name.setdefault(called(item.kernel), []).append(item)
    longest = sorted(by_name.items(), key=lambda pair: -sum(item.ms for item in pair[1]))[:2]
    where = f"{'most of it' if len(by_name) > 2 else 'all of it'} {' and '.join(_taken(*pair) for pair in longest)}"
    if part.bound_ms is None:
        return f"{name}: {ms}, {share}; {where}."
    if not part.bound_ms:
        return f"{name}: {ms}, {share}, {UNNEEDED[part.name]}; {where}."
    return f"{name}: {ms}, {share}, where {bound(part)} would do ({over(part)}); {where}."


def _taken(name: str, items: list[Item]) -> str:
    calls = sum(item.kernel.calls for item in items)
    plural = "" if calls == 1 else "s"
    return f"{name} with {text.milliseconds(sum(item.ms for item in items))} in {calls:,.5g} call{plural}"


def _work(profile: Profile) -> str:
    return "operator" if profile.device["kind"] == "cpu" else "kernel"
