"""The loss curve of a training run, with its learning rate and its speed; several runs drawn over each other."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plots import run_heading, style, text
from plots.curves import Curve, alike, curve, every, extremes, median, medians, tokens_per_step
from plots.run_heading import count, cut, write
from results.runs import Run, RunError, load_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: the panels from the bottom up, and what lies between them.
NOTES, SMALL, BETWEEN, LARGE, AXIS = 0.95, 1.15, 0.8, 3.6, 0.6
HEAD, CARDS = 1.26, 0.5
LEFT, GUTTER, RIGHT_LABELS = 0.95, 1.0, 0.4
SETTLED = 0.03  # the share of a run after which its loss decides how high the chart reaches, from 50 steps on
LONGEST_TITLE, LONGEST_LINE = 60, 114  # characters


def save_run(run_dirs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Draws one run as ``loss.png`` and ``loss.svg`` in its folder, several as ``loss-A-B.png`` in the current one.

    Args:
        run_dirs: folders of runs.
        out: another folder to write to.

    Returns:
        The files written.

    Raises:
        ValueError: a run cannot be read or has nothing to draw, or the folder cannot be written.
    """
    runs = [load_run(path) for path in run_dirs]
    names = "-".join(run.name for run in runs)[:100]  # a file's name may have 255 bytes
    folder = Path(out) if out is not None else runs[0].path if len(runs) == 1 else Path()
    stem = folder / ("loss" if len(runs) == 1 else f"loss-{names}")
    try:
        with style.drawing():
            return style.save(draw_run(runs), stem)
    except OSError as error:
        raise ValueError(f"cannot write {stem}.png: {error.strerror}; choose another folder with --out") from error


def draw_run(runs: Sequence[Run]) -> "Figure":
    """The chart of one run or several.

    Raises:
        RunError: a run has taken no step yet.
    """
    from matplotlib.figure import Figure

    for run in runs:
        if not len(run.steps):
            raise RunError(f"{run.path}: no step has been taken yet, so there is nothing to draw")
    per_step = [tokens_per_step(run) for run in runs]
    by_tokens = all(map(math.isfinite, per_step)) and not alike(per_step)
    curves = [curve(run, i, by_tokens) for i, run in enumerate(runs)]
    alone = len(runs) == 1
    subtitles = run_heading.subtitles(runs)
    summary = (CARDS if alone else run_heading.LINE * (len(runs) + 1) + 0.1) - 0.22 * (2 - len(subtitles))
    height = NOTES + SMALL + BETWEEN + LARGE + AXIS + summary + HEAD
    fig = Figure(figsize=(style.WIDTH, height), facecolor="white")
    inside = style.WIDTH - LEFT - style.EDGE

    def panel(x: float, y: float, width: float, tall: float) -> "Axes":
        ax = fig.add_axes((x / style.WIDTH, y / height, width / style.WIDTH, tall / height))
        ax.tick_params(length=0, labelsize=8.5, labelcolor=style.GREY, pad=4)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color(style.PALE)
        ax.grid(axis="y", color=style.HAIR, linewidth=0.8)
        ax.set_axisbelow(True)
        return ax

    half = (inside - GUTTER) / 2
    large = panel(LEFT, NOTES + SMALL + BETWEEN, inside, LARGE)
    low_left = panel(LEFT, NOTES, half, SMALL)
    labels = RIGHT_LABELS if any(median(run.steps.mfu) is not None for run in runs) else 0.0
    low_right = panel(LEFT + half + GUTTER, NOTES, half - labels, SMALL)

    beyond = _draw_loss(large, curves, by_tokens)
    _draw_learning_rate(low_left, curves)
    _draw_speed(low_right, curves)
    for ax, few in ((large, False), (low_left, True), (low_right, True)):
        _step_axis(ax, curves, by_tokens, few)
    if not by_tokens:
        _token_axis(large, tokens_per_step(runs[0]), curves)

    top = height - 0.36
    write(fig, 0, top, cut(run_heading.title(runs), LONGEST_TITLE), size=15, weight="bold")
    for i, line in enumerate(subtitles):
        write(fig, 0, top - 0.3 - 0.22 * i, cut(line, LONGEST_LINE), size=10 - i, color=style.GREY)
    (run_heading.cards if alone else run_heading.table)(fig, top - 0.5 - 0.22 * len(subtitles), curves)
    for i, note in enumerate(reversed(run_heading.notes(curves, beyond))):
        write(fig, 0, 0.18 + style.NOTE * i, cut(note, style.LONGEST_NOTE), size=7.8, color=style.GREY)
    return fig


def _draw_loss(ax: "Axes", curves: Sequence[Curve], by_tokens: bool) -> list[str]:
    """Training and validation loss; returns notes about what the chart does not show."""
    import numpy as np

    alone = len(curves) == 1
    for c in curves:
        dot = {"marker": "o", "markersize": 4, "alpha": 1.0} if len(c.x) < 3 else {}
        if alone:
            pale = {"alpha": 0.28, "linewidth": 0.7} if c.window > 1 else {"linewidth": 1.7}
            ax.plot(*extremes(c.x, c.loss), color=c.colour, label="training, each step", **pale | dot)
        if not alone or c.window > 1:
            words = f"training, mean of {c.window:,} steps" if alone else None
            ax.plot(*every(c.x, c.smooth), color=c.colour, linewidth=1.7, linestyle=c.dashes, label=words, **dot)
        shade = style.VERMILLION if alone else c.colour
        marker = {"marker": "o", "markersize": 3.6 if len(c.val) <= 60 else 1.8, "markeredgewidth": 0}
        if len(c.val):
            ax.plot(c.val_x, np.where(np.isfinite(c.val), c.val, np.nan), color=shade, linewidth=1.1 if alone else 0,
                    label="validation" if alone else None, zorder=3, **marker)  # fmt: skip
        if c.run.best:
            at = int(np.searchsorted(sorted(c.run.vals), c.run.best[0]))
            ax.plot(c.val_x[at], c.val[at], "o", markersize=9, markerfacecolor="none", markeredgecolor=shade,
                    markeredgewidth=1.6, label="best validation" if alone else None, zorder=4)  # fmt: skip
        if c.run.broke_at is not None:
            at = c.x[np.searchsorted(c.run.steps.step, c.run.broke_at)]
            value = c.loss[np.searchsorted(c.run.steps.step, c.run.broke_at)]
            ax.axvline(at, color=style.INK if alone else c.colour, linewidth=1.1, linestyle=(0, (4, 3)))
            ax.annotate(f"loss is {value:g} at step {c.run.broke_at:,}", (at, 0.95), (-6, 0), color=style.INK, size=8.5,
                        xycoords=("data", "axes fraction"), textcoords="offset points", ha="right")  # fmt: skip
        for step in c.run.resumed if alone else ():
            ax.plot(np.interp(step, c.run.steps.step, c.x), 0.014, marker="^", markersize=6, color=style.GREY,
                    transform=ax.get_xaxis_transform(), zorder=5)  # fmt: skip
    ax.set_title("loss, nats per token", loc="left", size=9, color=style.GREY, pad=8 if by_tokens else 22)
    if alone:
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.075), ncols=4, frameon=False, fontsize=8.8, borderpad=0,
                  borderaxespad=0, handlelength=1.6, columnspacing=1.6, handletextpad=0.6)  # fmt: skip
    return _limit_loss(ax, curves)


def _limit_loss(ax: "Axes", curves: Sequence[Curve]) -> list[str]:
    """Sets y so that the steep start, and a spike, do not press the rest of the curves flat."""
    import numpy as np

    alone = len(curves) == 1
    lows, settled, highs = [], [], []
    for c in curves:
        loss, vals = c.loss if alone else c.smooth, c.val[np.isfinite(c.val)]
        finite = np.isfinite(loss)
        first = math.ceil(SETTLED * len(loss)) if len(loss) >= 50 else 0
        late, late_vals = loss[first:][finite[first:]], c.val[np.isfinite(c.val) & (c.val_x >= c.x[first])]
        if finite.any():
            lows.append(np.percentile(loss[finite], 0.2))
            highs.append(loss[finite].max())
        if len(late):
            settled.append(np.percentile(late, 99.8))
        lows, highs, settled = [*lows, *vals], [*highs, *vals], [*settled, *late_vals]
    if not highs:
        ax.set_ylim(0, 1)
        return []
    low, high, top = min(lows), max(highs), max(settled, default=max(highs))
    beyond = high - low > 1.25 * (top - low) > 0
    top = top if beyond else high
    margin = 0.06 * (top - low) or 0.1 * abs(top) or 1.0
    ax.set_ylim(low - margin, top + margin)
    return [f"The highest {'loss' if alone else 'smoothed loss'}, {high:.2f}, lies above the chart."] if beyond else []


def _draw_learning_rate(ax: "Axes", curves: Sequence[Curve]) -> None:
    import numpy as np

    top = 0.0
    for c in curves:
        lr = np.array(c.run.steps.lr)
        ax.plot(*extremes(c.x, lr), color=c.colour, linewidth=1.4, linestyle=c.dashes,
                marker="o" if len(c.x) < 3 else None, markersize=4)  # fmt: skip
        top = max([top, *lr[np.isfinite(lr)]])
    ax.set_title("learning rate", loc="left", size=9, color=style.GREY, pad=6)
    ticks = style.round_ticks(top * 1.02 or 1.0, wanted=3)
    ax.set_ylim(0, (top or 1.0) * 1.12)
    ax.set_yticks(ticks, [f"{t:.1e}".replace(".0e", "e").replace("e-0", "e-") if t else "0" for t in ticks])


def _draw_speed(ax: "Axes", curves: Sequence[Curve]) -> None:
    """Tokens per second, and MFU on the right where all runs share one scale between the two."""
    import numpy as np

    top, scales = 0.0, []
    for c in curves:
        speed = np.array(c.run.steps.tokens_per_second)
        x, y = medians(c.x, speed)
        ax.plot(x, y, color=c.colour, linewidth=1.4, linestyle=c.dashes, marker="o" if len(x) < 3 else None,
                markersize=4)  # fmt: skip
        top = max([top, *y])
        mfu = median(c.run.steps.mfu)
        scales.append(mfu / median(speed) if mfu and median(speed) else math.nan)
    top = 1.15 * top or 1.0
    ax.set_ylim(0, top)
    ticks = style.round_ticks(top, wanted=3)
    ax.set_yticks(ticks, [text.round_tokens(t) for t in ticks])
    ax.set_title("tokens per second, median", loc="left", size=9, color=style.GREY, pad=6)
    if alike(scales):
        right = ax.secondary_yaxis("right", functions=(lambda v: v * scales[0] * 100, lambda v: v / scales[0] / 100))
        right.tick_params(length=0, labelsize=8.5, labelcolor=style.GREY, pad=4)
        right.spines["right"].set_visible(False)
        ticks = style.round_ticks(top * scales[0] * 100, wanted=3)[1:]  # 0 is the left axis's
        right.set_yticks(ticks, [f"{t:g} %" for t in ticks])
        ax.set_title("MFU", loc="right", size=9, color=style.GREY, pad=6)


def _step_axis(ax: "Axes", curves: Sequence[Curve], by_tokens: bool, few: bool) -> None:
    end = max(c.x[-1] for c in curves)
    ax.set_xlim(0, end * (1.02 if few else 1.01) or 1)
    ticks = style.round_ticks(end, wanted=4 if few else 8) if end else [0]
    if not by_tokens:
        ticks = [t for t in ticks if t == int(t)]
    ax.set_xticks(ticks, [count(t) if by_tokens or few else f"{t:,.0f}" for t in ticks])
    if not few:
        ax.set_xlabel("tokens" if by_tokens else "step", size=9, color=style.GREY, labelpad=3)


def _token_axis(ax: "Axes", tokens_per_step: float, curves: Sequence[Curve]) -> None:
    end = max(c.x[-1] for c in curves) * tokens_per_step
    if not (math.isfinite(end) and end > 0):
        return
    above = ax.secondary_xaxis("top", functions=(lambda s: s * tokens_per_step, lambda t: t / tokens_per_step))
    above.tick_params(length=0, labelsize=8.5, labelcolor=style.GREY, pad=3)
    above.spines["top"].set_visible(False)
    ticks = style.round_ticks(end * 1.001, wanted=7)
    above.set_xticks(ticks, ["0 tokens" if t == 0 else count(t) for t in ticks])
