"""`stepladder plot`: redraws charts and the README's tables from records, or draws training runs; needs no torch."""

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
RECORDS, GALLERY, README = ROOT / "results" / "records", ROOT / "plots" / "gallery", ROOT / "README.md"


def plot(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Folders of training runs, e.g. runs/nano.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Only this device (a folder of records).")] = None,
    results_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder given to pytest --benchmark --results-dir.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where a run's chart goes, instead of the run's own folder.")
    ] = None,
) -> None:
    """Redraw all charts from the records, or draw training runs: losses, HellaSwag over steps, speed in training and sampling.

    One RUN gets loss.png and loss.svg in its folder. Several are drawn together, in the current folder.
    Without RUN all charts of the records are drawn again; the README's tables too when they are this repository's own.
    """
    if runs:
        if device is not None or results_dir is not None:
            option = "--device" if device is not None else "--results-dir"
            raise ValueError(f"{option} is about records, and RUN {str(runs[0])!r} is a run; give one or the other")
        draw_runs(runs, out)
    elif out is not None:
        raise ValueError(f"--out {str(out)!r} is for the chart of a run; give a RUN, or --results-dir for records")
    else:
        draw_records(device, results_dir)


def draw_runs(runs: list[Path], out: Path | None) -> None:
    from plots.run import save_run

    for path in save_run(runs, out):
        typer.echo(path)


def draw_records(device: str | None, results_dir: Path | None) -> None:
    from plots.gallery import draw
    from plots.readme import update
    from results import load_all, peers, profiles

    records = RECORDS if results_dir is None else results_dir / "records"
    kinds = load_all(records), profiles.load_all(profiles.folder(records)), peers.load_all(peers.folder(records))
    for problem in (problem for _, problems in kinds for problem in problems):
        typer.echo(f"skipped: {problem}", err=True)
    devices = sorted({record.device["slug"] for found, _ in kinds for _, record in found})
    if not devices:
        raise ValueError(f"no records in {records}; make one with: pytest --benchmark")
    if device is not None and device not in devices:
        raise ValueError(f"no records of device {device!r}; there are: {', '.join(devices)}")
    drawn = draw(records, GALLERY if results_dir is None else results_dir / "charts", device)
    for path in drawn:
        typer.echo(path)
    if results_dir is None and update(README, records):
        typer.echo(README)
