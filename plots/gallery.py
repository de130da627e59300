"""The rendered charts that the README shows, and whether they still say what the records say.

Every chart has an entry in ``manifest.json``: the records it was drawn from, a digest of the numbers drawn, a digest of
the code that drew them, and a digest of each file. Files differ between versions of matplotlib, so staleness is judged
by the numbers and the code, never by drawing again.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plots import devices, kernels, ladder, leave_one_out, memory, peers, profile, roofline, sampling, scaling, style, waterfall
from results import analysis, profiles, store
from results import peers as comparisons
from results.gaps import breakdown
from results.peers import Comparison
from results.profiles import Profile
from results.schema import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GALLERY = Path(__file__).parent / "gallery"
MANIFEST = "manifest.json"
DEVICES = "devices"  # the one chart that is about all devices
PROFILE = "profile"
PEERS = "peers"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A chart that a device can have.

    Args:
        derivation: which ladder of a record it shows.
        draw: from a record; None where there is nothing to show.
        suite: whose records.
    """

    derivation: str
    draw: Callable[[Record], "Figure | None"]
    suite: str = analysis.LADDER


CHARTS: dict[str, Kind] = {
    "ladder": Kind(derivation=analysis.CUMULATIVE, draw=ladder.draw),
    "waterfall": Kind(derivation=analysis.CUMULATIVE, draw=waterfall.draw),
    "leave-one-out": Kind(derivation=analysis.LEAVE_ONE_OUT, draw=leave_one_out.draw),
    "choices": Kind(derivation=analysis.CHOICES, draw=leave_one_out.draw_choices),
    "memory": Kind(derivation=analysis.CUMULATIVE, draw=memory.draw),
    "roofline": Kind(derivation=analysis.CUMULATIVE, draw=roofline.draw),
    "scaling": Kind(derivation=analysis.SCALING, draw=scaling.draw),
    "sampling": Kind(suite=analysis.SAMPLING, derivation=analysis.CUMULATIVE, draw=sampling.draw),
    "sampling-waterfall": Kind(suite=analysis.SAMPLING, derivation=analysis.CUMULATIVE, draw=waterfall.draw),
    "sampling-memory": Kind(suite=analysis.SAMPLING, derivation=analysis.CUMULATIVE, draw=memory.draw),
    "sampling-batch": Kind(suite=analysis.SAMPLING, derivation=analysis.BATCH, draw=sampling.draw_batches),
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart to draw: its place below the gallery without suffix, what it is drawn from, and how."""

    stem: str
    derivation: str
    sources: list[tuple[Path, Record]]
    figure: Callable[[], "Figure | None"]

    def numbers(self) -> list[Any]:
        """What is drawn, as plain values, for each source."""
        return [[asdict(row) for row in analysis.rows(record, self.derivation)] for _, record in self.sources]

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it, but for the files."""
        return {
            "records": [f"{path.parent.name}/{path.name}" for path, _ in self.sources],
            "data_sha256": hashlib.sha256(json.dumps(_rounded(self.numbers()), sort_keys=True).encode()).hexdigest(),
            "source_sha256": source_digest(),
        }


@dataclass(frozen=True, kw_only=True)
class ProfileChart(Chart):
    """A chart drawn from a profile instead of a record."""

    sources: list[tuple[Path, Profile]]

    def numbers(self) -> list[Any]:
        return [asdict(breakdown(found)) for _, found in self.sources]


@dataclass(frozen=True, kw_only=True)
class PeersChart(Chart):
    """A chart drawn from a comparison with other projects."""

    sources: list[tuple[Path, Comparison]]

    def numbers(self) -> list[Any]:
        return [[asdict(row) for row in comparisons.rows(found)] for _, found in self.sources]


def plan(
    records: Sequence[tuple[Path, Record]],
    traced: Sequence[tuple[Path, Profile]] = (),
    compared: Sequence[tuple[Path, Comparison]] = (),
) -> list[Chart]:
    """The charts that these call for: for each device, suite and derivation, of the one that speaks for it."""
    charts, across = [], []
    for device in sorted({record.device["slug"] for _, record in records}):
        for name, kind in CHARTS.items():
            if chosen := analysis.choose(records, device, kind.derivation, kind.suite):
                figure = functools.partial(kind.draw, chosen[1])
                charts.append(Chart(stem=f"{device}/{name}", derivation=kind.derivation, sources=[chosen], figure=figure))
        charts += kernel_charts(records, device)
        if chosen := analysis.choose(records, device):
            across.append(chosen)
    if across:
        figure = functools.partial(devices.draw, [record for _, record in across])
        charts.append(Chart(stem=DEVICES, derivation=analysis.CUMULATIVE, sources=across, figure=figure))
    for device in sorted({found.device["slug"] for _, found in traced}):
        chosen = profiles.choose(traced, device)
        figure = functools.partial(profile.draw, chosen[1])
        charts.append(ProfileChart(stem=f"{device}/{PROFILE}", derivation=PROFILE, sources=[chosen], figure=figure))
    for device in sorted({found.device["slug"] for _, found in compared}):
        chosen = comparisons.choose(compared, device)
        figure = functools.partial(peers.draw, chosen[1])
        charts.append(PeersChart(stem=f"{device}/{PEERS}", derivation=PEERS, sources=[chosen], figure=figure))
    return charts


def kernel_charts(records: Sequence[tuple[Path, Record]], device: str) -> list[Chart]:
    """One for each kernel that a device's records know, of the record that speaks for that kernel."""
    names = {name for _, r in records if (r.suite, r.device["slug"]) == (analysis.KERNELS, device) for name in r.derivations}
    charts = []
    for name in sorted(names):
        chosen = analysis.choose(records, device, name, analysis.KERNELS)
        figure = functools.partial(kernels.draw, chosen[1], name)
        charts.append(Chart(stem=kernel_stem(device, name), derivation=name, sources=[chosen], figure=figure))
    return charts


def kernel_stem(device: str, kernel: str) -> str:
    """The place of a kernel's chart below the gallery, without suffix."""
    return f"{device}/kernel-{kernel.replace('_', '-')}"


def draw(records_dir: Path, out_dir: Path = GALLERY, device: str | None = None) -> list[Path]:
    """Draws the gallery and its manifest.

    Args:
        records_dir: folder of all devices' records, profiles and comparisons beside it; unreadable ones are left out
            (`store.load_all`, `profiles.load_all` and `peers.load_all` name them).
        out_dir: where the charts go, a folder for each device.
        device: draw this device's charts alone, and the one across devices.

    Returns:
        The files written. Charts whose records are gone are removed.

    Raises:
        StoreError: the folder cannot be written.
    """
    records, _ = store.load_all(records_dir)
    traced, _ = profiles.load_all(profiles.folder(records_dir))
    compared, _ = comparisons.load_all(comparisons.folder(records_dir))
    before, entries, written = _read_manifest(out_dir), {}, []
    try:
        with style.drawing():
            for chart in plan(records, traced, compared):
                if device and chart.stem != DEVICES and not chart.stem.startswith(f"{device}/"):
                    if chart.stem in before:
                        entries[chart.stem] = before[chart.stem]
                    continue
                figure = chart.figure()
                files = style.save(figure, out_dir / chart.stem) if figure else []
                written += files
                entries[chart.stem] = chart.entry() | {"files": {f.name: _sha256(f) for f in files}}
        for stem, entry in before.items():
            for name in entry["files"].keys() - entries.get(stem, {"files": {}})["files"].keys():
                ((out_dir / stem).parent / name).unlink(missing_ok=True)
        replace_text(out_dir / MANIFEST, json.dumps(entries, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        store.explain(error, out_dir)
    return written


def stale(records_dir: Path, out_dir: Path = GALLERY, readme: Path | None = None) -> list[str]:
    """Why the gallery and the README no longer say what the records say, a line each; empty when they do.

    Args:
        records_dir: folder of all devices' records.
        out_dir: the gallery.
        readme: the file with generated sections; ``None`` looks at the gallery alone.
    """
    records, reasons = store.load_all(records_dir)
    traced, unreadable = profiles.load_all(profiles.folder(records_dir))
    compared, unread = comparisons.load_all(comparisons.folder(records_dir))
    drawn, planned = _read_manifest(out_dir), {chart.stem: chart for chart in plan(records, traced, compared)}
    reasons += unreadable + unread
    reasons += [f"{stem}: its records are gone" for stem in sorted(drawn.keys() - planned.keys())]
    for stem, chart in planned.items():
        entry = drawn.get(stem)
        if entry is None:
            reasons.append(f"{stem}: was never drawn")
            continue
        for key, value in chart.entry().items():
            if entry.get(key) != value:
                reasons.append(f"{stem}: {WHAT_CHANGED[key]} changed since it was drawn")
        for name, digest in entry["files"].items():
            file = (out_dir / stem).parent / name
            if not file.is_file() or _sha256(file) != digest:
                reasons.append(f"{file}: is missing or was changed by hand")
    if readme is not None:
        from plots import readme as sections  # it draws on this module's plan

        if sections.updated(readme, records_dir, out_dir) != readme.read_text(encoding="utf-8"):
            reasons.append(f"{readme}: a generated section is not what the records say")
    return reasons


WHAT_CHANGED = {"records": "the records", "data_sha256": "the numbers", "source_sha256": "the drawing code"}
NOT_OF_THE_GALLERY = {"readme.py", "table.py", "kernel_table.py", "profile_table.py", "peers_table.py", "run.py", "run_heading.py", "curves.py"}


def source_digest() -> str:
    """A digest of the code that draws charts from records: this package but for the table, the README and runs."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.name not in NOT_OF_THE_GALLERY:
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def replace_text(path: Path, content: str) -> None:
    """Puts new content in a file's place, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_manifest(out_dir: Path) -> dict[str, Any]:
    """The entries that can be believed; a lost or broken manifest is an empty one, and everything is drawn again."""
    try:
        entries = json.loads((out_dir / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    place, file = re.compile(r"(?:[a-z0-9][\w.-]*/)?[a-z-]+"), re.compile(r"[a-z-]+\.(?:png|svg)")
    return {
        stem: entry
        for stem, entry in (entries.items() if isinstance(entries, dict) else ())
        if place.fullmatch(stem) and isinstance(entry, dict) and isinstance(entry.get("files"), dict)
        and all(file.fullmatch(name) for name in entry["files"])
    }  # fmt: skip


def _rounded(value: Any) -> Any:
    """Numbers to nine digits: the last bits of a logarithm differ between machines."""
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
