"""The README's generated sections: everything between ``<!-- generated:NAME -->`` and ``<!-- /generated -->``."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from plots import devices, gallery, peers, profile_text, text
from plots.kernels import cell, reached
from results import analysis, profiles, store
from results import peers as comparisons
from results.gaps import breakdown
from results.kernels import OURS, Problem, problems
from results.peers import Comparison
from results.profiles import Profile
from results.schema import Record
from results.stats import NO_DIFFERENCE

SECTION = re.compile(r"(<!-- generated:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- /generated -->)", re.DOTALL)
NOTHING = "Nothing has been measured yet: `make bench` measures this machine.\n"

WORDS = ("part", "name", "program", "what differs", "phase", "kernel", "direction", "on", "rung", "device", "workload", "rungs", "versions", "measured", "record")  # columns set flush left

NUM_KERNELS = 15  # of a profile

Records = Sequence[tuple[Path, Record]]
Profiles = Sequence[tuple[Path, Profile]]
Comparisons = Sequence[tuple[Path, Comparison]]


def update(readme: Path, records_dir: Path, out_dir: Path = gallery.GALLERY) -> bool:
    """Writes the generated sections anew; the rest of the file keeps every byte.

    Args:
        readme: the file; it keeps its old content if this fails.
        records_dir: folder of all devices' records.
        out_dir: the gallery that images are linked from.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: a section has an unknown name or no end.
        StoreError: the file cannot be written.
    """
    content = updated(readme, records_dir, out_dir)
    if content == readme.read_text(encoding="utf-8"):
        return False
    try:
        gallery.replace_text(readme, content)
    except OSError as error:
        store.explain(error, readme)
    return True


def updated(readme: Path, records_dir: Path, out_dir: Path = gallery.GALLERY) -> str:
    """What the file should say. Arguments and errors as for `update`."""
    content = readme.read_text(encoding="utf-8")
    records, traced, compared = (
        [(Path(os.path.relpath(path, readme.parent)), record) for path, record in load_all(folder)[0]]
        for load_all, folder in (
            (store.load_all, records_dir),
            (profiles.load_all, profiles.folder(records_dir)),
            (comparisons.load_all, comparisons.folder(records_dir)),
        )
    )
    found = [match["name"] for match in SECTION.finditer(content)]
    known = (*SECTIONS, gallery.PROFILE, gallery.PEERS)
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{readme} has a generated section {unknown[0]!r}; choose one of {', '.join(known)}")
    if len(found) != content.count("<!-- generated:"):
        raise ValueError(f"{readme} has a generated section without end; close each with <!-- /generated -->")
    images = Path(os.path.relpath(out_dir, readme.parent)).as_posix()
    return SECTION.sub(lambda m: f"{m[1]}\n{_section(m['name'], records, traced, compared, images)}\n{m[4]}", content)


def _section(name: str, records: Records, traced: Profiles, compared: Comparisons, images: str) -> str:
    if name == gallery.PROFILE:
        return of_profile(traced, images)
    return of_peers(compared, images) if name == gallery.PEERS else SECTIONS[name](records, images)


def ladder(records: Records, images: str) -> str:
    """The ladder of the device with the fastest setting known: chart, table, provenance."""
    device = max(_slugs(records), key=lambda slug: _best_speed(records, slug), default=None)
    chosen = analysis.choose(records, device) if device else None
    if not chosen:
        return NOTHING
    path, record = chosen
    rows = analysis.rows(record)
    cells = [
        [
            row.title,
            text.tokens(row.tokens_per_second.value),
            text.times(1.0) if row.is_baseline else text.times(row.over_baseline.ratio) if row.over_baseline else "",
            _claim(row),
            text.share(row.mfu_full) if row.mfu_full is not None else "",
            text.share(row.roofline_share) if row.roofline_share is not None else "",
            text.gib(row.peak_memory_bytes) if row.peak_memory_bytes else "",
            text.seconds(row.compile_ms) if row.compile_ms is not None else "",
        ]
        if row.tokens_per_second
        else [row.title, f"*{text.not_measured(row)}*", "", "", "", "", "", ""]
        for row in rows
    ]
    heads = [
        "rung",
        "tokens/s",
        "× baseline",
        "over the rung before",
        "MFU (full)",
        "of the roofline",
        "peak memory",
        "compile",
    ]
    image = f"![Training speed on {record.device['name']}]({images}/{device}/ladder.png)\n\n"
    return (
        (image if any(row.tokens_per_second for row in rows) else "")
        + _table(heads, cells)
        + f"\n{record.device['name']} · {text.workload(record)} · {text.versions(record)}"
        + f" · {text.provenance(record)} · {_link(path)}\n"
    )


def across_devices(records: Records, images: str) -> str:
    """One row per device, by the record that speaks for it, the fastest first."""
    found = [
        (*chosen, devices.fastest(chosen[1])) for slug in _slugs(records) if (chosen := analysis.choose(records, slug))
    ]
    measured = sorted(((p, r, row) for p, r, row in found if row), key=lambda found: -found[2].tokens_per_second.value)
    if not measured:
        return NOTHING
    cells = [
        [
            record.device["name"],
            text.workload(record),
            text.tokens(row.tokens_per_second.value),
            f"{text.times(row.over_baseline.ratio)} {text.half_width(row.over_baseline)}".strip()
            if row.over_baseline
            else text.times(1.0),
            " + ".join(row.rungs) or "baseline",
            text.share(row.mfu_full) if row.mfu_full is not None else "",
            text.versions(record),
            record.created_utc[:10] + ", quick" * record.quick + ", partial" * (record.status != "complete"),
        ]
        for _, record, row in measured
    ]
    image = (
        f"![Speed-up by device]({images}/devices.png)\n\n" if any(row.over_baseline for _, _, row in measured) else ""
    )
    heads = ["device", "workload", "tokens/s", "× baseline", "rungs", "MFU (full)", "versions", "measured"]
    return image + _table(heads, cells)


def best(records: Records, images: str) -> str:
    """The fastest right setting of each device and the record that it is known from."""
    found = [b for slug in _slugs(records) if (b := analysis.best(records, slug))]
    if not found:
        return NOTHING
    cells = [
        [
            b.record.device["name"],
            f"`{','.join(b.measurement.rungs) or 'baseline'}`",
            f"{text.tokens(b.tokens_per_second.value)} {text.half_width(b.tokens_per_second)}".strip(),
            _link(b.path),
        ]
        for b in sorted(found, key=lambda b: -b.tokens_per_second.value)
    ]
    return _table(["device", "rungs", "tokens/s", "record"], cells)


def sampling(records: Records, images: str) -> str:
    """The ladder of writing of the device that writes fastest: chart, table, provenance."""
    found = [chosen for slug in _slugs(records) if (chosen := analysis.choose(records, slug, suite=analysis.SAMPLING))]
    if not found:
        return NOTHING.replace("make bench", "pytest --benchmark --suite sampling")
    path, record = max(found, key=lambda chosen: _writing_speed(chosen[1]))
    rows = [*analysis.rows(record), *(r for r in analysis.rows(record, analysis.BATCH) if r.label != "1")]
    cells = [
        [
            row.title,
            text.tokens(row.tokens_per_second.value),
            text.times(1.0) if row.is_baseline else text.times(row.over_baseline.ratio) if row.over_baseline else "",
            _claim(row),
            text.milliseconds(row.first_token_ms.value) if row.first_token_ms else "",
            text.share(row.roofline_share) if row.roofline_share is not None else "",
            text.gib(row.peak_memory_bytes) if row.peak_memory_bytes else "",
        ]
        if row.tokens_per_second
        else [row.title, f"*{text.not_measured(row)}*", "", "", "", "", ""]
        for row in rows
    ]
    heads = ["rung", "tokens/s", "× baseline", "over the rung before", "first token", "of the bandwidth bound", "peak memory"]
    image = f"![Writing speed on {record.device['name']}]({images}/{record.device['slug']}/sampling.png)\n\n"
    return (
        (image if any(row.tokens_per_second for row in analysis.rows(record)) else "")
        + _table(heads, cells)
        + f"\n{record.device['name']} · {text.workload(record)} · {text.versions(record)}"
        + f" · {text.provenance(record)} · {_link(path)}\n"
    )


def kernels(records: Records, images: str) -> str:
    """Our kernels on the device with the fastest memory: each direction's largest problem that ours was measured on."""
    found = [(path, r) for path, r in records if r.suite == analysis.KERNELS]
    device = max(_slugs(found), key=lambda slug: _bandwidth(found, slug), default=None)
    names = sorted({name for _, r in found if r.device["slug"] == device for name in r.derivations})
    cells, sources = [], {}
    for name in names:
        path, record = analysis.choose(found, device, name, analysis.KERNELS)
        measured = [p for p in problems(record, name) if p.ours and p.ours.row.step_ms]
        chart = f"[{name}]({images}/{gallery.kernel_stem(device, name)}.png)"
        for direction in dict.fromkeys(p.direction for p in measured):
            largest = max((p for p in measured if p.direction == direction), key=lambda p: p.least.ms if p.least else 0.0)
            cells.append([chart, *_kernel_cells(largest)])
            sources[path] = record
    if not cells:
        return NOTHING.replace("make bench", "pytest --benchmark --suite kernels")
    heads = ["kernel", "direction", "on", "written out", "library", "torch.compile", "ours", "reaches", "of the bound"]
    reading = "Every call from cold caches. (1.32×): ours is that many times faster; (=): no difference within its interval or the noise.\n"
    lines = [
        f"{r.device['name']} · {text.versions(r)} · {text.provenance(r)} · {_link(path)}\n" for path, r in sources.items()
    ]
    return _table(heads, cells) + "\n" + "\n".join([reading, *lines])


def _kernel_cells(problem: Problem) -> list[str]:
    ours, own = problem.ours, ("written-out", "compiled")
    libraries = [e for e in problem.entries if e.name not in own and not e.name.startswith(OURS) and e.row.step_ms]
    fastest = min(libraries, key=lambda e: e.row.step_ms.value, default=None)
    return [
        problem.direction,
        problem.size,
        cell(problem.entry("written-out")),
        f"{fastest.title}: {cell(fastest)}" if fastest else text.NONE,
        cell(problem.entry("compiled")),
        f"{cell(ours)} {text.half_width(ours.row.step_ms)}".strip(),
        reached(problem, ours),
        text.share(ours.row.roofline_share) if ours.row.roofline_share is not None else "",
    ]


def of_profile(traced: Profiles, images: str) -> str:
    """Where a step goes on the device with the fastest products: chart, parts, the largest gaps, the longest kernels."""
    found = [profiles.choose(traced, slug) for slug in _slugs(traced)]
    if not found:
        return NOTHING.replace("make bench", "stepladder profile --best")
    path, of = max(found, key=lambda pair: _product_rate(pair[1]))
    step = breakdown(of)
    cells = [profile_text.row(part, step) for part in step.parts if part.ms or part.bound_ms]
    longest = [
        [f"`{line.name}`", line.part, line.phase, f"{line.calls:,.5g}", text.milliseconds(line.ms)]
        for line in profile_text.lines(of)[:NUM_KERNELS]
    ]
    words = " ".join([profile_text.limits(of), profile_text.accounts(of, step), profile_text.fused(of)])
    source = " · ".join([profile_text.heading(of), text.versions(of), profile_text.provenance(of)])
    return "\n".join([
        f"![Where a step goes on {of.device['name']}]({images}/{of.device['slug']}/{gallery.PROFILE}.png)\n",
        _table(["part", "time", "bound", "more", "over bound", "of the step"], cells),
        "".join(f"{i + 1}. {sentence}\n" for i, sentence in enumerate(profile_text.sentences(of))),
        f"<details><summary>The longest {'operators' if of.device['kind'] == 'cpu' else 'kernels'}</summary>\n",
        _table(["name", "part", "phase", "calls per step", "ms per step"], longest),
        f"</details>\n\n{words}\n",
        f"{source} · [profile]({path.as_posix()})\n",
    ])  # fmt: skip


def _product_rate(found: Profile) -> float:
    return max((found.peaks.get("measured") or {}).get("tflops", {}).values(), default=0.0)

def of_peers(compared: Comparisons, images: str) -> str:
    """Training runs of other projects beside ours, on the device where ours is fastest: chart, table, provenance."""
    found = [comparisons.choose(compared, slug) for slug in _slugs(compared)]
    if not found:
        return "Not compared yet: `stepladder peers nanogpt=DIR build-nanogpt=DIR llm.c=DIR --best`.\n"
    path, of = max(found, key=lambda pair: comparisons.speed_of_ours(pair[1]))
    cells = [
        [
            row.entrant.title if row.name == comparisons.OURS else f"[{row.entrant.title}]({row.entrant.source})",
            text.tokens(row.tokens_per_second.value) if row.tokens_per_second else f"*{peers.failure(row)}*",
            text.milliseconds(row.step_ms.value) if row.step_ms else "",
            peers.faster(row),
            "; ".join(peers.about(row)),
        ]
        for row in comparisons.rows(of)
    ]
    return "\n".join([
        f"![Training runs, ours and others', on {of.device['name']}]({images}/{of.device['slug']}/{gallery.PEERS}.png)\n",
        _table(["program", "tokens/s", "per step", "speed of ours over it", "what differs"], cells),
        f"{peers.heading(of)} · {text.versions(of)} · {peers.provenance(of)} · {_link(path)}\n",
    ])  # fmt: skip


def _bandwidth(records: Records, slug: str) -> float:
    measured = [r.peaks.get("measured") or {} for _, r in records if r.device["slug"] == slug]
    return max(peaks.get("bandwidth_gbps", 0.0) for peaks in measured)


SECTIONS: dict[str, Callable[[Records, str], str]] = {
    "ladder": ladder,
    "devices": across_devices,
    "best": best,
    "sampling": sampling,
    "kernels": kernels,
}


def _slugs(records: Records | Profiles | Comparisons) -> list[str]:
    return sorted({record.device["slug"] for _, record in records})


def _best_speed(records: Records, slug: str) -> float:
    """FLOP/s, so that a small model on a processor does not outrun a large one on a GPU."""
    found = analysis.best(records, slug)
    return found.tokens_per_second.value * found.record.flops_per_token["full"] if found else 0.0


def _writing_speed(record: Record) -> float:
    return max((row.tokens_per_second.value for row in analysis.rows(record) if row.tokens_per_second), default=0.0)


def _link(path: Path) -> str:
    return f"[record]({path.as_posix()})"


def _claim(row: analysis.Row) -> str:
    words = text.over_previous(row)
    return words if words in ("", text.NONE, NO_DIFFERENCE) else f"{words} {text.half_width(row.over_previous)}".strip()


def _table(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [
        heads,
        ["---" if head in WORDS else "---:" for head in heads],
        *([cell.replace("|", "\\|") for cell in row] for row in cells),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
