"""The ladders that can be read off one ordered list, none of them written by hand.

    cumulative     baseline, then each rung added to those below it: the classic chart
    single         each rung, with what it needs, over the baseline alone
    leave-one-out  everything, then everything without one rung and what depends on it
    choices        everything, then everything with another rung in a slot, or with none there
    scaling        everything, in 1, 2, 4, … processes

A rung that cannot run on the device keeps its place, with the reason, and is left out of what follows. Where only some
rungs are used, one whose need is met by a later one alone is climbed after that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hardware import Device
from optim_ladder.ladder import meets
from optim_ladder.rung import Rung
from optim_ladder.settings import Settings, Workload


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place on a derived ladder: settings, or the reason there are none.

    Args:
        label: the rung added, left out or put in here, "no" and a slot, "baseline", "all", or a number of processes.
        title: chart label.
        settings: what to measure; None for a skipped rung.
        previous: the settings this place is compared with beside the baseline.
        skipped: why the rung cannot run here.
    """

    label: str
    title: str
    settings: Settings | None
    previous: Settings | None = None
    skipped: str | None = None


def why_not(rung: Rung, active: Sequence[Rung], device: Device, workload: Workload) -> str | None:
    """None when a rung can be added to those already on; else the reason."""
    if reason := rung.unavailable(device, workload):
        return reason
    missing = [need for need in rung.needs if not meets(active, need)]
    return f"needs {missing[0]!r}, which is not on" if missing else None


def climbing_order(rungs: Sequence[Rung]) -> list[Rung]:
    """Ladder order, but for a rung whose need only a later one meets: it comes after that."""
    order, waiting = [], list(rungs)
    while waiting:
        ready = (r for r in waiting if all(meets(order, need) or not meets(waiting, need) for need in r.needs))
        order.append(next(ready))
        waiting.remove(order[-1])
    return order


def climb(rungs: Sequence[Rung], device: Device, workload: Workload) -> tuple[tuple[Rung, ...], dict[str, str]]:
    """The rungs that are on at the top, later ones having taken over their slots, and name -> reason of those skipped."""
    active: tuple[Rung, ...] = ()
    skipped = {}
    for rung in climbing_order(rungs):
        if reason := why_not(rung, active, device, workload):
            skipped[rung.name] = reason
        else:
            active = take_over(active, rung)
    return active, skipped


def take_over(active: Sequence[Rung], rung: Rung) -> tuple[Rung, ...]:
    """``rung`` added, whatever held its slot removed."""
    return (*(r for r in active if rung.slot is None or r.slot != rung.slot), rung)


def settings_of(active: Sequence[Rung], workload: Workload) -> Settings:
    return Settings(workload=workload, rungs=tuple(r.name for r in active))


def cumulative(rungs: Sequence[Rung], device: Device, workload: Workload) -> list[Place]:
    places = [Place(label="baseline", title="fp32 baseline", settings=settings_of((), workload))]
    active: tuple[Rung, ...] = ()
    for rung in climbing_order(rungs):
        if reason := why_not(rung, active, device, workload):
            places.append(Place(label=rung.name, title=rung.title, settings=None, skipped=reason))
            continue
        before, active = active, take_over(active, rung)
        places.append(
            Place(
                label=rung.name,
                title=rung.title,
                settings=settings_of(active, workload),
                previous=settings_of(before, workload),
            )
        )
    return places


def provider(need: str, rungs: Sequence[Rung], device: Device, workload: Workload) -> Rung | None:
    """The rung that meets a need by itself: the one named, or if it is not there, the first to have its slot."""
    able = [r for r in rungs if meets([r], need) and not r.unavailable(device, workload)]
    return next((r for r in able if r.name == need), next(iter(able), None))


def single(rungs: Sequence[Rung], device: Device, workload: Workload) -> list[Place]:
    baseline = settings_of((), workload)
    places = [Place(label="baseline", title="fp32 baseline", settings=baseline)]
    for rung in rungs:
        needed = [provider(need, rungs, device, workload) for need in rung.needs]
        active, skipped = climb([*filter(None, needed), rung], device, workload)
        if rung.name in skipped:
            places.append(Place(label=rung.name, title=rung.title, settings=None, skipped=skipped[rung.name]))
        else:
            places.append(
                Place(label=rung.name, title=rung.title, settings=settings_of(active, workload), previous=baseline)
            )
    return places


def leave_one_out(rungs: Sequence[Rung], device: Device, workload: Workload) -> list[Place]:
    top, skipped = climb(rungs, device, workload)
    everything = settings_of(top, workload)
    places = [Place(label="all", title="all rungs", settings=everything)]
    for rung in rungs:
        if rung in top:
            # Leaving a rung out brings back what it had taken over, and takes what needs it along.
            rest, _ = climb([r for r in rungs if r is not rung], device, workload)
            without = settings_of(rest, workload)
            places.append(
                Place(label=rung.name, title=f"without {rung.title}", settings=without, previous=everything)
            )
        else:
            reason = skipped.get(rung.name) or "already replaced at the top by a later rung of its slot"
            places.append(
                Place(label=rung.name, title=f"without {rung.title}", settings=None, skipped=reason)
            )
    return places


def choices(rungs: Sequence[Rung], device: Device, workload: Workload) -> list[Place]:
    top, skipped = climb(rungs, device, workload)
    everything = settings_of(top, workload)
    places = [Place(label="all", title="all rungs", settings=everything)]
    for slot in dict.fromkeys(rung.slot for rung in rungs if rung.slot):
        members = [rung for rung in rungs if rung.slot == slot]
        if sum(rung.name not in skipped for rung in members) < 2:
            continue  # there is no other choice than to leave it out
        others = [rung for rung in rungs if rung.slot != slot]
        for rung in members:
            if rung in top:
                continue
            reason = skipped.get(rung.name)
            instead, _ = climb([r for r in rungs if r in others or r is rung], device, workload)
            places.append(
                Place(
                    label=rung.name,
                    title=f"with {rung.title}",
                    settings=None if reason else settings_of(instead, workload),
                    previous=None if reason else everything,
                    skipped=reason,
                )
            )
        empty = settings_of(climb(others, device, workload)[0], workload)
        places.append(Place(label=f"no {slot}", title=f"with no {slot} rung", settings=empty, previous=everything))
    return places


def scaling(rungs: Sequence[Rung], spread: Sequence[Rung], device: Device, workload: Workload) -> list[Place]:
    places: list[Place] = []
    alone = settings_of(climb(rungs, device, workload)[0], workload)
    most = device.count if device.kind == "cuda" else 2  # processes on a CPU share its cores: two show that it works
    for world_size in sorted({1, 2, *(2**i for i in range(most.bit_length()) if 2**i <= most), most}):
        here = replace(workload, world_size=world_size)
        active, skipped = climb([*rungs, *spread] if world_size > 1 else rungs, device, here)
        reason = next((skipped[r.name] for r in spread if r.name in skipped), None)
        places.append(
            Place(
                label=str(world_size),
                title=f"{world_size} process{'es' if world_size > 1 else ''}",
                settings=None if reason else settings_of(active, here),
                previous=None if world_size == 1 or reason else alone,
                skipped=reason,
            )
        )
    return places


DERIVATIONS = ("cumulative", "single", "leave-one-out", "choices", "scaling")


def derive(name: str, rungs: Sequence[Rung], device: Device, workload: Workload) -> list[Place]:
    """One derived ladder.

    Args:
        name: one of `DERIVATIONS`.
        rungs: the part of the ladder to use, in ladder order.
        device: where it will run.
        workload: of one process.
    """
    ladder = [r for r in rungs if not r.scaling]
    spread = [r for r in rungs if r.scaling]
    match name:
        case "cumulative":
            return cumulative(ladder, device, workload)
        case "single":
            return single(ladder, device, workload)
        case "leave-one-out":
            return leave_one_out(ladder, device, workload)
        case "choices":
            return choices(ladder, device, workload)
        case "scaling":
            return scaling(ladder, spread, device, workload)
    raise AssertionError(name)
