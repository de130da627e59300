"""`stepladder compare A B`: two records, rung by rung: did anything move?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

RECORDS = Path(__file__).resolve().parent.parent / "results" / "records"


def compare(
    a: Annotated[str, typer.Argument(help="A record: a path, or a part of its name that no other has.")],
    b: Annotated[str, typer.Argument(help="The record to hold against it.")],
) -> None:
    """Hold record B against record A, rung by rung, with intervals over each record's trials. What differs between two sessions on
    a shared machine is in neither interval: read a small difference as a reason to measure again."""
    from plots.table import compare_table
    from results import load

    console = Console()
    console.print(compare_table(load(find(a)), load(find(b))))


def find(name: str, records: Path = RECORDS) -> Path:
    """The record file a user means.

    Raises:
        ValueError: none or several match.
    """
    if Path(name).is_file():
        return Path(name)
    matches = sorted(path for path in records.glob("*/*.json") if name in f"{path.parent.name}/{path.name}")
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"record {name!r} could be {', '.join(p.name for p in matches[:5])}; give more of its name")
    newest = sorted(records.glob("*/*.json"), key=lambda p: p.name)[-5:]
    known = f"the newest are {', '.join(p.name for p in newest)}" if newest else "make one with: pytest --benchmark"
    raise ValueError(f"no record {name!r} under {records.name}/; {known}")
