"""`stepladder ladder`: every rung, and whether it can be used on this device; `--explain` tells a rung's story."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hardware import Device
    from optim_ladder import Rung, Workload

RECORDS = Path(__file__).resolve().parent.parent / "results" / "records"


def ladder(
    explain: Annotated[
        str | None, typer.Option(metavar="RUNG", help="What this rung does, what it costs, what it measured here.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="KIND", help="cuda, mps or cpu instead of the best there is.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Workload to judge by, instead of the device's own.")
    ] = None,
) -> None:
    """Every rung in order: available on this device, or why not."""
    from hardware import detect
    from optim_ladder import profile as find_profile
    from optim_ladder import rung

    here = detect(device)
    name, workload = find_profile(here, profile)
    console = Console()
    if explain is None:
        console.print(overview(here, name, workload))
        console.print("The baseline below the first rung: fp32, eager, attention written out, AdamW tensor by tensor.")
        console.print("Learn more: stepladder ladder --explain RUNG. Measure: pytest --benchmark.")
        return
    for paragraph in story(rung(explain), here, workload):
        wrapped = textwrap.fill(paragraph, min(console.width, 100), break_long_words=False, break_on_hyphens=False)
        console.print(wrapped, highlight=False, markup=False, soft_wrap=True)


def availability(rung: "Rung", device: "Device", workload: "Workload") -> str | None:
    """Why a rung cannot run; one that joins processes is judged with two of them."""
    return rung.unavailable(device, replace(workload, world_size=2) if rung.scaling else workload)


def overview(device: "Device", profile: str, workload: "Workload") -> Table:
    from optim_ladder import LADDER

    table = Table(
        title=f"{device.name}, profile {profile}: {workload.model}, B={workload.micro_batch}, T={workload.seq_len}",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("rung", no_wrap=True)
    table.add_column("what it is")
    table.add_column("on this device", overflow="fold")
    for rung in LADDER:
        reason = availability(rung, device, workload)
        table.add_row(rung.name, rung.title, f"[dim]no: {reason}[/dim]" if reason else "[green]yes[/green]")
    return table


def story(rung: "Rung", device: "Device", workload: "Workload") -> list[str]:
    """A rung's essay, its bounds, and what it measured on this device, a paragraph each."""
    from optim_ladder import LADDER
    from results import load_all
    from results.analysis import choose, rows

    essay = [line for paragraph in rung.essay.strip().split("\n\n") for line in (" ".join(paragraph.split()), "")]
    lines = [f"{rung.name}: {rung.title}", "", *essay, f"Source: {rung.source}"]
    if replaced := [r.name for r in LADDER[: LADDER.index(rung)] if rung.slot and r.slot == rung.slot]:
        lines.append(f"Takes over from: {', '.join(replaced)}")
    if rung.needs:
        lines.append(f"Needs: {', '.join(rung.needs)}")
    d = rung.drift
    lines.append(f"May move the loss by {d.loss:g} nats, a gradient by {d.gradient:g} and its norm by {d.norm:g} (relative).")
    if reason := availability(rung, device, workload):
        lines.append(f"On {device.name}: cannot run here: {reason}.")
    found, _ = load_all(RECORDS, device.slug)
    measured = []
    for derivation in ("single", "cumulative", "leave-one-out", "choices"):
        if (pair := choose(found, device.slug, derivation)) is None:
            continue
        row = next((r for r in rows(pair[1], derivation) if r.label == rung.name), None)
        if row is not None and row.tokens_per_second is not None and row.over_previous is not None:
            over = {
                "single": "over the baseline",
                "cumulative": "over the rung before",
                "leave-one-out": "without it",
                "choices": "in the place of the ladder's choice",
            }[derivation]
            measured.append(
                f"  {derivation}: {row.over_previous.ratio:.2f} × {over} ({row.over_previous_verdict}), "
                f"{row.tokens_per_second.value:,.0f} tok/s  [{pair[0].name}]"
            )
    lines += ["Measured here:", *measured] if measured else [f"Not measured on {device.name} yet: pytest --benchmark."]
    return lines
