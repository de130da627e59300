"""The words and figures around the chart of a training run: title, subtitles, the figures that count, notes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plots import style, text
from plots.curves import SMOOTHING, Curve, median, tokens_per_step
from results.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE, CARD_WIDTH = 0.27, 1.12  # inches: a row of the table, a card of figures
LONGEST_NAME = 44  # characters


def title(runs: Sequence[Run]) -> str:
    """Training gpt2 on fineweb-edu-10b."""
    if len(runs) > 1:
        return "Training runs compared"
    model, corpus = _words(runs[0], "model"), _words(runs[0], "corpus")
    return f"Training {model or runs[0].name}{f' on {corpus}' if corpus else ''}"


def subtitles(runs: Sequence[Run]) -> list[str]:
    """What all of the runs have in common: device and rungs; name and tokens per step."""

    def common(values: list[str]) -> str:
        return values[0] if len(set(values)) == 1 else ""

    first = [common([_words(run, "device") for run in runs]), common([_rungs(run) for run in runs])]
    second = [runs[0].name if len(runs) == 1 else "", common([_step_words(run) for run in runs])]
    if len(runs) > 1:
        first[:0] = [common([_words(run, "model") for run in runs]), common([_words(run, "corpus") for run in runs])]
    return [" · ".join(filter(None, parts)) for parts in (first, second) if any(parts)]


def cards(fig: "Figure", y: float, curves: Sequence[Curve]) -> None:
    """The figures that count, in a row."""
    run = curves[0].run
    last = next((v for v in curves[0].smooth[::-1] if math.isfinite(v)), math.nan)
    speed, mfu, tokens = median(run.steps.tokens_per_second), median(run.steps.mfu), run.steps.tokens[-1]
    spent = sum(ms for ms in run.steps.step_ms if math.isfinite(ms)) / 1e3
    found = [
        (f"{run.best[1]:.4f}", f"best validation, step {run.best[0]:,}", 1.8) if run.best else None,
        (f"{last:.4f}", "last training loss", 1.3),
        (f"{run.steps.step[-1]:,}", "steps", 1.0),
        (count(tokens), "tokens", 1.0) if math.isfinite(tokens) else None,
        (count(speed), "tokens per second", 1.25) if speed is not None else None,
        (text.share(mfu), "MFU", 0.85) if mfu is not None else None,
        (_duration(spent), "in training steps", 1.1) if spent else None,
    ]
    x = 0.0
    for number, words, width in filter(None, found):
        write(fig, x, y, number, size=14)
        write(fig, x, y - 0.23, words, size=8, color=style.GREY)
        x += width * CARD_WIDTH


def table(fig: "Figure", y: float, curves: Sequence[Curve]) -> None:
    """The figures that count, one run a row, which is the chart's legend too."""
    from matplotlib.lines import Line2D

    answered = any(c.hellaswag for c in curves)
    columns = (*((4.9, 5.85, 6.7, 7.6, 8.55) if answered else (5.2, 6.5, 7.7, 8.6)), style.WIDTH - 2 * style.EDGE)
    headings = ("best validation", *(["HellaSwag"] if answered else []), "steps", "tokens", "tokens/s", "MFU")
    for x, words in zip(columns, headings, strict=True):
        write(fig, x, y, words, size=8.5, color=style.GREY, ha="right")
    for i, c in enumerate(curves, 1):
        row, height = y - LINE * i, fig.get_figheight()
        ends = [(style.EDGE + x) / style.WIDTH for x in (0.0, 0.3)]
        fig.add_artist(Line2D(ends, [row / height] * 2, color=c.colour, linestyle=c.dashes, linewidth=2))
        write(fig, 0.4, row, cut(c.run.name, LONGEST_NAME), size=10)
        speed, mfu, tokens = median(c.run.steps.tokens_per_second), median(c.run.steps.mfu), c.run.steps.tokens[-1]
        cells = (
            f"{c.run.best[1]:.4f} at {c.run.best[0]:,}" if c.run.best else text.NONE,
            *([f"{c.hellaswag.share[-1]:.4f}" if c.hellaswag else text.NONE] if answered else []),
            f"{c.run.steps.step[-1]:,}",
            count(tokens) if math.isfinite(tokens) else text.NONE,
            count(speed) if speed is not None else text.NONE,
            text.share(mfu) if mfu is not None else text.NONE,
        )
        for x, words in zip(columns, cells, strict=True):
            write(fig, x, row, words, size=9.5, ha="right")


def notes(curves: Sequence[Curve], beyond: list[str]) -> list[str]:
    """How to read the chart, what is not on it, and where it comes from, a line each."""
    items = " or ".join(f"{n:,}" for n in sorted({c.hellaswag.items for c in curves if c.hellaswag}))
    asked = [f"HellaSwag over {items} items, with its 95 % interval; published: over all 10,042."] if items else []
    if len(curves) > 1:
        lines = f"Line: training loss, mean over 1/{SMOOTHING} of the run. Dots: validation; ring: its best."
        if len({_words(c.run, "tokenizer_sha256") for c in curves} - {""}) > 1:
            lines += " Their tokenizers differ, so losses per token do not compare."
        return [lines, *beyond, *asked]
    run = curves[0].run
    reading = [*beyond, *asked, "Triangles: the run was resumed here." if run.resumed else ""]
    ended = "not stopped: running, or killed"
    if run.stop:
        ended = f"{run.stop.get('reason', 'stopped')} at step {run.stop['step']:,}"
    start = [_words(run, "utc")[:10], f"torch {_words(run, 'torch')}" if _words(run, "torch") else "",
             f"commit {_words(run, 'commit')[:9]}" if _words(run, "commit") else "", ended]  # fmt: skip
    return [line for line in (" ".join(filter(None, reading)), " · ".join(filter(None, start))) if line]


def _words(run: Run, key: str) -> str:
    """What the run said when it started under a key; of a table its name."""
    value = run.said(key)
    value = value.get("name") if isinstance(value, dict) else value
    return " ".join(value.split()) if isinstance(value, str) else ""


def _rungs(run: Run) -> str:
    rungs = run.said("rungs")
    return ", ".join(map(str, rungs)) if rungs else "no rungs: the fp32 baseline" if rungs == [] else ""


def _step_words(run: Run) -> str:
    """524,288 tokens a step: micro-batch 64 × 1024 tokens, 4 accumulated, 2 processes."""
    per_step = tokens_per_step(run)
    micro_batch, seq_len, accumulation, processes = sizes = [
        run.said(key) for key in ("micro_batch", "seq_len", "grad_accumulation", "world_size")
    ]
    if not math.isfinite(per_step) or not all(type(size) is int for size in sizes):
        return ""
    words = f"{per_step:,.0f} tokens a step: micro-batch {micro_batch} × {seq_len} tokens"
    words += f", {accumulation} accumulated" if accumulation > 1 else ""
    return words + (f", {processes} processes" if processes > 1 else "")


def count(number: float) -> str:
    """10B, 9.44B, 655M, 473k, 9,100."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number / 1e3:.3g}k" if number >= 1e4 else f"{number:,.0f}"


def cut(words: str, length: int) -> str:
    """Words on one line, with an ellipsis where they are too long for it."""
    flat = "".join(c if c.isprintable() else " " for c in words)
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _duration(seconds: float) -> str:
    """42 s, 9 min 40 s, 5 h 52 min, 2 d 3 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def write(fig: "Figure", x: float, y: float, words: str, **look: object) -> None:
    """Words at x inches from the left edge and y from the bottom."""
    place = (style.EDGE + x) / style.WIDTH, y / fig.get_figheight()
    fig.text(*place, words, va="center", parse_math=False, **look)  # a $ in a name is a $
