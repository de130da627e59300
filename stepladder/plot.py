"""`stepladder plot`: redraws charts and the README's tables from records; needs no torch."""

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
RECORDS, GALLERY, README = ROOT / "results" / "records", ROOT / "plots" / "gallery", ROOT / "README.md"


def plot(
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Only this device (a folder of records).")] = None,
    results_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder given to pytest --benchmark --results-dir.")
    ] = None,
) -> None:
    """Redraw all charts from the records; the README's tables too when they are this repository's own."""
    from plots.gallery import draw
    from plots.readme import update
    from results import load_all

    records = RECORDS if results_dir is None else results_dir / "records"
    found, problems = load_all(records)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    devices = sorted({record.device["slug"] for _, record in found})
    if not devices:
        raise ValueError(f"no records in {records}; make one with: pytest --benchmark")
    if device is not None and device not in devices:
        raise ValueError(f"no records of device {device!r}; there are: {', '.join(devices)}")
    drawn = draw(records, GALLERY if results_dir is None else results_dir / "charts", device)
    for path in drawn:
        typer.echo(path)
    if results_dir is None and update(README, records):
        typer.echo(README)
