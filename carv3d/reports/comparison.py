"""The page of a comparison: finding, curves, tables, pictures and turntables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.table import Table as RichTable

from carv3d.comparison.comparison import Comparison, Outcome
from carv3d.comparison.quality import PICTURE, picture_camera
from carv3d.comparison.statistics import Array, Bootstrap, Curves, Estimate
from carv3d.comparison.yardsticks import TRUTH
from carv3d.images import encode_png
from carv3d.reports.page import Page, Table, colophon
from carv3d.reports.plots import PALETTE, subplots, svg
from carv3d.shapes import parse, reference

_FILMS = 6  # prompts with turntables in the page, which embeds all files
_TIME, _CALLS = "training time, s", "teacher calls, thousands"


def write_page(comparison: Comparison, path: Path, command: str) -> None:
    """Write the page, one file with everything inside.

    Args:
        comparison: finished.
        path: of the page.
        command: the command line, for the last line of the page.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    names = [method.name for method in comparison.plan.methods]
    page = Page(f"{' and '.join(names[1:])} against {names[0]}", lead(comparison), footer=_footer(comparison, command))
    if comparison.plan.scale:
        _curves(page, comparison)
    _methods(page, comparison)
    if comparison.plan.scale:
        _prompts(page, comparison)
    _media(page, comparison)
    page.write(path)


def lead(comparison: Comparison) -> str:
    """The finding in words, also if the method is not better."""
    plan, baseline = comparison.plan, comparison.plan.methods[0]
    last = plan.methods[-1]
    budget = f"time ({_three(last.seconds)} s" if plan.equal == "time" else f"teacher calls ({last.calls:,}"
    over = f"{_count(len(plan.prompts), 'prompt')} and {_count(plan.seeds, 'seed')}"
    start = f"At equal {budget} of training a run), over {over}: "
    if plan.scale is None:
        return f"{start}pictures and costs. Quality needs true objects to compare with, or --clip MODEL."
    return (
        start
        + "; ".join(_finding(outcome, baseline.name, plan.scale.unit) for outcome in comparison.outcomes[1:])
        + "."
    )


def _finding(outcome: Outcome, baseline: str, unit: str) -> str:
    assert outcome.result is not None
    name, found, speedup = outcome.method.name, outcome.result.quality_difference, outcome.result.speedup
    assert found.value is not None
    digits = _digits(found, 1, 2)
    size = f"{abs(found.value):.{digits}f}{unit} {'above' if found.value >= 0 else 'below'} {baseline}"
    between = f"95 % interval {_signed(found.low, digits)} to {_signed(found.high, digits)}"
    if found.holds_zero is None:
        text = f"{name} ends {size}, and one seed cannot tell whether that is more than chance"
    elif found.holds_zero:
        text = (
            f"between {name} and {baseline} there is no difference that these runs can tell "
            f"({_signed(found.value, digits)}{unit}, {between})"
        )
    else:
        text = f"{name} ends {size} ({between})"
    if speedup.value is None:
        return f"{text}; it does not reach {baseline}'s final quality within its budget"
    interval = ""
    if speedup.high is not None:
        interval = f" ({speedup.low:.2f} to {speedup.high:.2f})" if speedup.low else f" (at most {speedup.high:.2f})"
    return f"{text}; it reaches {baseline}'s final quality {speedup.value:.2f} times as fast{interval}"


# ------------------------------------------------------------------------------------------ curves


def _curves(page: Page, comparison: Comparison) -> None:
    assert comparison.plan.scale is not None
    figure, axes = subplots(2, width=5.4, height=3.6)
    for axis, label in zip(axes, (_TIME, _CALLS), strict=True):
        _plot(axis, comparison.outcomes, label, slice(None))
        axis.set_ylabel(comparison.plan.scale.label)
    axes[0].legend(loc="lower right", frameon=False, fontsize=9)
    end = comparison.plan.methods[0].name
    band = "bands: 95 % intervals over seeds" if comparison.plan.seeds > 1 else "one seed, so no bands"
    page.section("Quality against time and cost").plot(
        svg(figure),
        f"Mean over prompts and seeds, {band}. Dashed: where {end} ends. Time is the step times the method's "
        "seconds a step, which were timed with the methods taking turns, so that a busy machine does not bend it.",
    )


def _plot(axis: Axes, outcomes: list[Outcome], label: str, prompts: slice) -> None:
    for outcome, colour in zip(outcomes, _colours(len(outcomes)), strict=True):
        assert outcome.curves is not None
        x = _axis(outcome.curves, label)
        values = outcome.curves.quality[prompts]
        axis.plot(x, values.mean((0, 1)), color=colour, label=outcome.method.name, linewidth=1.6)
        if band := Bootstrap(*values.shape[:2]).band(values):
            axis.fill_between(x, *band, color=colour, alpha=0.16, linewidth=0)
    assert outcomes[0].curves is not None
    axis.axhline(
        float(outcomes[0].curves.quality[prompts, :, -1].mean()), color="#999999", linestyle="--", linewidth=0.8
    )
    axis.set_xlabel(label)
    axis.set_xlim(left=0)


def _axis(curves: Curves, label: str) -> Array:
    return curves.seconds if label == _TIME else curves.calls / 1000


def _colours(count: int) -> list[str]:
    return [PALETTE[(index - 1) % len(PALETTE)] if index else "#777777" for index in range(count)]


# ------------------------------------------------------------------------------------------ tables


def terminal_table(comparison: Comparison) -> RichTable:
    """The methods; without quality where the true objects are not known."""
    scale = comparison.plan.scale or TRUTH
    first, second = scale.keys
    table = RichTable("method", "K", "steps", "calls", scale.label, scale.names[1], "difference", "speed-up", box=None)
    for row in comparison.figures()["methods"]:
        cells = [row["name"], str(row["resamples"]), str(row["steps"]), str(row["teacher_calls"])]
        if row[first] is None:
            cells += ["–"] * 4
        else:
            low, high = row["difference_low"], row["difference_high"]
            interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
            cells += [f"{row[first]:.2f}", f"{row[second]:.3f}", f"{row['difference']:+.2f}{interval}"]
            cells.append("not reached" if row["speedup"] is None else f"{row['speedup']:.2f}")
        table.add_row(*cells)
    return table


def _methods(page: Page, comparison: Comparison) -> None:
    rows = []
    for outcome in comparison.outcomes:
        method, guidance = outcome.method, outcome.method.config.guidance
        row = [method.name, str(guidance.renders), str(guidance.resamples), guidance.proposal, guidance.strata]
        row += [guidance.coupling, method.cameras]
        row += [_three(method.cost.seconds * 1000), f"{method.steps:,}"]
        row += [_three(method.seconds), f"{method.calls:,}"]
        rows.append([*row, _three(outcome.seconds)])
    section = page.section("The methods").table(
        Table(
            [
                *("method", "R", "K", "proposal", "strata", "coupling", "cameras"),
                *("ms/step", "steps", "time, s", "teacher calls", "measured, s"),
            ],
            rows,
        ),
        "R renders a step, K draws a render; a teacher call is one draw, so a step makes R × K, or what a "
        "trial run made where K chooses itself. Measured: mean training time of the runs by their own clocks; it "
        "differs from the time when the machine was busy.",
    )
    scale = comparison.plan.scale
    if scale is None:
        return
    quality, speed = [], []
    for outcome in comparison.outcomes:
        assert outcome.result is not None
        name, found, baseline = outcome.method.name, outcome.result, outcome is comparison.outcomes[0]
        difference = "–" if baseline else _difference(found.quality_difference)
        quality.append([name, _plus_minus(found.quality, 1, 2), _plus_minus(found.other, 3, 3), difference])
        in_time, in_calls = ("–" if baseline else _speedup(x) for x in (found.speedup, found.speedup_calls))
        in_seconds = "not reached" if found.seconds_needed is None else f"{_three(found.seconds_needed)} s"
        calls = "not reached" if found.calls_needed is None else f"{found.calls_needed:,.0f}"
        speed.append([name, in_seconds, in_time, calls, in_calls])
    end = comparison.plan.methods[0].name
    section.table(
        Table(["method", scale.label, scale.names[1], f"difference to {end}"], quality),
        "At the end of the runs, mean over prompts and seeds"
        + ("." if comparison.plan.seeds == 1 else "; ± and [ ]: 95 % intervals over seeds, for these prompts."),
    )
    section.table(
        Table(["method", "time needed", "speed-up", "teacher calls needed", "speed-up in calls"], speed),
        f"What each method needs to come up to {end}'s final mean {scale.names[0]}, on its mean curve. A "
        f"speed-up above 1 means less than {end} needs.",
    )


def _prompts(page: Page, comparison: Comparison) -> None:
    plan, outcomes, scale = comparison.plan, comparison.outcomes, comparison.plan.scale
    assert scale is not None
    section = page.section("Prompt by prompt")
    columns = min(3, len(plan.prompts))
    for label in (_TIME, _CALLS):
        figure, axes = subplots(columns, -(-len(plan.prompts) // columns), width=3.6, height=2.5)
        for index, axis in enumerate(axes):
            if index >= len(plan.prompts):
                axis.set_visible(False)
                continue
            _plot(axis, outcomes, label, slice(index, index + 1))
            axis.set_title(plan.prompts[index], loc="left", fontsize=10)
        axes[0].legend(loc="lower right", frameon=False, fontsize=8)
        section.plot(svg(figure), f"{scale.label} against {label}.")
    rows = []
    finals = [outcome.curves.quality[..., -1] for outcome in outcomes if outcome.curves]
    for index, prompt in enumerate(plan.prompts):
        mine = [final[index : index + 1] for final in finals]
        bootstrap = Bootstrap(*mine[0].shape)
        row = [prompt, *(_plus_minus(bootstrap.mean(final), 1, 2) for final in mine)]
        rows.append(row + [_difference(bootstrap.mean(final - mine[0])) for final in mine[1:]])
    names = [method.name for method in plan.methods]
    head = ["prompt", *names, *(f"{name} − {names[0]}" for name in names[1:])]
    section.table(
        Table(head, rows),
        f"Final {scale.label}. One prompt has few runs: its interval is rough, and one of twenty misses by chance.",
    )


# ------------------------------------------------------------------------------------------ pictures


def _media(page: Page, comparison: Comparison) -> None:
    plan = comparison.plan
    pictures, films = [], []
    for index, prompt in enumerate(plan.prompts):
        jobs = [comparison.job(method, prompt) for method in plan.methods]
        row: list[tuple[str, bytes | Path]] = [(f"{job.method.name}: {prompt}", job.path / PICTURE) for job in jobs]
        if plan.scale is TRUTH:
            truth = reference(parse(prompt), picture_camera())[0][0]
            row.append((f"true object: {prompt}", encode_png(truth)))
        pictures.append(row)
        if index < _FILMS:
            films.append([(f"{job.method.name}: {prompt}", job.path / "turntable.mp4") for job in jobs])
    page.section("Final pictures").media(pictures, "The end of the runs of seed 0.")
    others = "" if len(plan.prompts) <= _FILMS else f" The first {_FILMS} prompts; the other films are in the runs."
    page.section("Turntables").media(films, f"The runs of seed 0.{others}")


def _footer(comparison: Comparison, command: str) -> str:
    threads = f"{_count(comparison.plan.threads, 'thread')} a run"
    return colophon(comparison.environment | {"command": command}, threads)


# ------------------------------------------------------------------------------------------ figures as text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _digits(found: Estimate, default: int, most: int) -> int:
    """Significant decimals: to the second figure of the interval's half width."""
    if found.low is None or found.high is None or found.high <= found.low:
        return default
    return min(most, max(0, 1 - math.floor(math.log10((found.high - found.low) / 2))))


def _signed(value: float | None, digits: int) -> str:
    text = f"{value or 0.0:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _plus_minus(found: Estimate, default: int, most: int) -> str:
    digits = _digits(found, default, most)
    text = f"{found.value:.{digits}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} ± {(found.high - found.low) / 2:.{digits}f}"


def _difference(found: Estimate) -> str:
    digits = _digits(found, 1, 2)
    text = _signed(found.value, digits)
    return text if found.low is None else f"{text} [{_signed(found.low, digits)}, {_signed(found.high, digits)}]"


def _speedup(found: Estimate) -> str:
    if found.value is None:
        return "not reached"
    if found.high is None:
        return f"{found.value:.2f}"
    low = f"{found.low:.2f}" if found.low else "not reached"
    return f"{found.value:.2f} [{low}, {found.high:.2f}]"


def _three(value: float) -> str:
    """Three figures; whole numbers are whole."""
    if value <= 0 or not np.isfinite(value):
        return f"{value:.0f}"
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, max(0, digits)):,.{max(0, digits)}f}"
