"""The page, plots and table of `carv3d measure`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich import box
from rich.table import Table as RichTable

from carv3d.accounting import STEADY, best_resamples
from carv3d.measurement import NoiseReport, Row
from carv3d.measurement.findings import TRUSTED_Z
from carv3d.reports.page import Page, Table
from carv3d.reports.plots import PALETTE, subplots, svg


def terminal_table(report: NoiseReport) -> RichTable:
    """The rows of one render, and the best of the others."""
    title = f"variance of the gradient, {report.renders} renders, {report.seconds:.0f} s"
    table = RichTable(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("method", "R", "K", "variance", "within", "ms", "ECM", "RE", "z"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in _shown(report):
        cells = _cells(row)
        short = row.method.replace("importance", "IS").replace("stratified", "strat").replace("antithetic", "anti")
        style = "bold green" if row is report.recommended else None
        table.add_row(short.replace(" ", ""), *cells[1:4], f"{row.variance_within:.3g}", *cells[7:], style=style)
    return table


def lead(report: NoiseReport) -> str:
    """The finding in two or three sentences."""
    best = report.recommended
    setting, interval = f"{best.method}, R = {best.R}, K = {best.K}", f"{best.ecm_low:.2f} to {best.ecm_high:.2f}"
    if best.ecm_low > 1:
        words = [
            f"The best setting is {setting}: for a gradient as quiet, plain SDS would need {best.ecm:.2f} times "
            f"the compute (95 % interval {interval})."
        ]
    else:
        words = [
            "No setting beats plain SDS beyond doubt: the best, "
            f"{setting}, has an effective compute multiplier of {best.ecm:.2f} ({interval})."
        ]
    if report.between.value > 0:
        share, best_k = report.within.value / report.between.value, max(report.predicted_resamples, 1.0)
        words.append(
            f"With one draw, timestep and noise make {share:.2g} times the variance that the view makes, and a render "
            f"with its encoding and backward pass costs as much as {report.cost.ratio:.1f} draws: the best K of "
            f"uniform draws should be near {best_k:.1f}."
        )
    else:
        words.append("The view adds no variance that could be measured: more resamples of one render do best.")
    if report.windows:
        window = report.windows[0]
        steps = round(1 / (1 - window.beta))
        found = f"in Adam's average over some {steps} steps of plain SDS the gradient has {window.signal_to_noise:.2g} "
        if report.noise_limited:
            words.append(f"This run is limited by noise: {found}times the power of its noise.")
        else:
            words.append(
                f"Noise is not what limits this run: {found}times the power of its noise, so that more steps may "
                "do more for it than quieter ones."
            )
    if report.renders < STEADY:
        words.append(f"Only {report.renders} renders were measured: give a larger budget before acting on this.")
    if report.trusted:
        words.append(
            "All methods agree on the mean gradient of every render; a bias of "
            f"{report.detectable_bias:.0%} of it would have been seen."
        )
    else:
        worst = max(report.rows, key=lambda row: row.z)
        words.append(f"Do not trust this: the mean of {worst.method}, K = {worst.K}, is off by z = {worst.z:.1f}.")
    return " ".join(words)


def page_of(report: NoiseReport, path: str, title: str, footer: str) -> Page:
    """The page, ready to be written; `path` is of the run or config that was measured."""
    page = Page(title, lead(report), footer=footer)
    section = page.section("What to use")
    section.text(f"As overrides of the config: {report.setting}")
    figure, axes = subplots(2)
    _variance_against_cost(axes[0], report)
    _ecm_against_resamples(axes[1], report)
    section.plot(
        svg(figure),
        "Left: each point is one (R, K); down and to the left is better, the grey line is plain SDS with more renders. "
        "Right: the effective compute multiplier with its 95 % interval over renders; the dashed line is "
        "(a+1)(b+1)K / ((a+K)(b+K)) for uniform independent draws.",
    )
    section = page.section("Where the variance and the time come from")
    figure, axes = subplots(2)
    _shares(axes[0], report)
    _costs(axes[1], report)
    section.plot(
        svg(figure),
        f"Variance of a step with one render, and the time of its parts ({path}). "
        f"The model fitted to all measured steps is R ({report.measured_cost.c_up * 1e3:.1f} + "
        f"K × {report.measured_cost.c_denoise * 1e3:.1f}) ms.",
    )
    section = page.section("Timesteps")
    figure, axes = subplots(2)
    _norms(axes[0], report)
    _proposals(axes[1], report)
    uniform, heuristic, oracle = (report.moments[key] for key in ("uniform", "importance", "oracle"))
    section.plot(
        svg(figure),
        f"Left: how large one draw's gradient is, by its timestep. Right: where draws come from. One draw's "
        f"second moment is {heuristic / uniform:.2f} of the uniform proposal's with the weight's proposal, and "
        f"{oracle / uniform:.2f} with the oracle's, which none can beat.",
    )
    if report.windows:
        section = page.section("Cameras")
        section.text(
            "Adam steps along moving averages of gradients. At a frozen scene, with one render a step, this is the "
            "variance of such an average: of plain SDS, and of the method above under independent cameras and under "
            "cameras.order=sequence."
        )
        orders = [
            [f"{w.beta:g}", f"{w.signal_to_noise:.2g}", *(f"{v:.3g}" for v in (w.baseline, w.independent, w.sequence))]
            for w in report.windows
        ]
        names = ["decay of the average", "signal to noise of SDS", "plain SDS", "independent", "sequence"]
        section.table(
            Table(names, orders),
            "Signal to noise is the squared norm of the mean gradient over the variance of the average.",
        )
    section = page.section("Can it be trusted?")
    worst = max(row.z for row in report.rows)
    section.text(
        f"Every method must have the same mean gradient at every render. The largest difference between one method and "
        f"the others is z = {worst:.1f} standard errors above none; from {TRUSTED_Z:.0f} on something would be wrong. "
        f"A bias of {report.detectable_bias:.0%} of the gradient would have been seen."
    )
    section = page.section("Every method")
    rows = report.rows
    strong = [index for index, row in enumerate(rows) if row is report.recommended]
    head = ["method", "R", "K", "variance", "between", "timestep", "noise", "ms", "ECM", "RE", "z"]
    section.table(Table(head, [_cells(row) for row in rows], strong), "Variances with 95 % intervals over renders.")
    return page


def _cells(row: Row) -> list[str]:
    half = (row.variance_high - row.variance_low) / 2
    return [
        row.method,
        str(row.R),
        str(row.K),
        f"{row.variance:.3g} ± {half:.1g}",
        f"{row.variance_between:.3g}",
        f"{row.variance_timestep:.2g}",
        f"{row.variance_noise:.3g}",
        f"{row.cost_ms:.0f}",
        f"{row.ecm:.2f} ({row.ecm_low:.2f}-{row.ecm_high:.2f})",
        f"{row.re:.2f}",
        f"{row.z:.1f}",
    ]


def _shown(report: NoiseReport) -> list[Row]:
    rows = [row for row in report.rows if row.R == 1]
    return rows if report.recommended in rows else [*rows, report.recommended]


def _names(report: NoiseReport) -> list[str]:
    return list(dict.fromkeys(row.method for row in report.rows))


def _variance_against_cost(axes: Axes, report: NoiseReport) -> None:
    base = report.baseline
    cost = np.array([base.cost_ms / 4, max(row.cost_ms for row in report.rows)])
    axes.plot(cost, base.variance * base.cost_ms / cost, color="#bbbbbb", zorder=1)
    best = min(row.variance for row in report.rows)
    for name, colour in zip(_names(report), PALETTE, strict=False):
        rows = [row for row in report.rows if row.method == name]
        axes.scatter([r.cost_ms for r in rows], [r.variance for r in rows], s=18, color=colour, label=name, zorder=2)
    front = [r for r in report.rows if not any(o.variance < r.variance and o.cost_ms < r.cost_ms for o in report.rows)]
    labelled = {(row.R, row.K): row for row in sorted(front, key=lambda row: -row.variance)}
    for row in labelled.values():
        axes.annotate(
            f"({row.R}, {row.K})", (row.cost_ms, row.variance), (3, 4), textcoords="offset points", fontsize=7.5
        )
    axes.set(xscale="log", yscale="log", xlabel="ms a step", ylabel="tr Cov of the gradient", title="Variance and cost")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylim(best / 1.6, None)
    axes.set_xlim(base.cost_ms / 1.5, None)
    axes.legend(fontsize=8)


def _ecm_against_resamples(axes: Axes, report: NoiseReport) -> None:
    ks = sorted({row.K for row in report.rows})
    for index, name in enumerate(_names(report)):
        rows = [row for row in report.rows if row.method == name and row.R == 1]
        if len(rows) < 2:
            continue
        x = np.array([row.K for row in rows]) * 1.03 ** (index - 1.5)
        y = np.array([row.ecm for row in rows])
        error = [y - [row.ecm_low for row in rows], [row.ecm_high for row in rows] - y]
        axes.errorbar(x, y, yerr=np.maximum(error, 0), color=PALETTE[index], label=name, marker="o", ms=4, capsize=2)
    if report.between.value > 0:
        a, b = report.cost.ratio, report.within.value / report.between.value
        k = np.geomspace(1, max(ks), 100)
        axes.plot(k, (a + 1) * (b + 1) * k / ((a + k) * (b + k)), "--", color="#777777", lw=1, label="model, uniform")
        best = best_resamples(report.cost.c_up, report.cost.c_denoise, report.between.value, report.within.value)
        if 1 <= best <= max(ks):
            axes.axvline(best, color="#777777", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="K, resamples a render", ylabel="ECM", title="Effective compute multiplier, R = 1")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.legend(fontsize=8)


def _shares(axes: Axes, report: NoiseReport) -> None:
    short = {"uniform": "u", "importance + stratified": "i+s", "importance + stratified + antithetic": "i+s+a"}
    rows = [row for row in report.rows if row.R == 1 and row.method in short]
    rows.sort(key=lambda row: (row.K, len(row.method)))
    x, bottom = np.arange(len(rows)), np.zeros(len(rows))
    for part, colour in (("between", "#56B4E9"), ("timestep", "#E69F00"), ("noise", "#D55E00")):
        height = np.array([max(getattr(row, f"variance_{part}"), 0.0) for row in rows])
        axes.bar(x, height, 0.75, bottom, color=colour, label={"between": "view"}.get(part, part))
        bottom += height
    axes.set_xticks(x, [f"{row.K}\n{short[row.method]}" for row in rows], fontsize=7)
    axes.set(xlabel="K; u: uniform, i: importance, s: strata, a: antithetic", ylabel="tr Cov")
    axes.set_title("Variance by source, R = 1")
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8)


def _costs(axes: Axes, report: NoiseReport) -> None:
    ks = list(report.cost_parts)
    x, bottom = np.arange(len(ks)), np.zeros(len(ks))
    for part, colour in zip(("render", "encode", "backward", "denoise", "overhead"), PALETTE, strict=False):
        height = np.array([report.cost_parts[K].get(part, 0.0) for K in ks])
        axes.bar(x, height, 0.65, bottom, color=colour, label=part)
        bottom += height
    axes.plot(x, [report.measured_cost(1, K) * 1e3 for K in ks], "k_", ms=22, label="model")
    axes.set_xticks(x, [str(K) for K in ks])
    axes.set(xlabel="K", ylabel="ms a step", title="Measured time, R = 1")
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8)


def _norms(axes: Axes, report: NoiseReport) -> None:
    centres = (report.edges[1:] + report.edges[:-1]) / 2
    axes.errorbar(
        centres, report.norm, yerr=report.norm_error, marker="o", ms=4, capsize=2, label="gradient norm, rms", zorder=2
    )
    t = np.arange(len(report.weight))[report.p.numpy() > 0]
    w = report.weight.numpy()[t]
    at_centres = np.interp(centres, t, w)
    known = np.isfinite(report.norm)
    scale = (report.norm[known] * at_centres[known]).sum() / (at_centres[known] ** 2).sum()
    axes.plot(t, scale * w, color="#777777", ls="--", label="w(t), scaled", zorder=1)
    axes.set(xlabel="t", ylabel="norm of one draw's gradient", title="Gradient by timestep", ylim=(0, None))
    axes.legend(fontsize=8)


def _proposals(axes: Axes, report: NoiseReport) -> None:
    p, w = report.p.numpy(), report.weight.numpy()
    t = np.arange(len(p))[p > 0]
    centres = (report.edges[1:] + report.edges[:-1]) / 2
    known = np.isfinite(report.norm)
    oracle = np.interp(t, centres[known], report.norm[known])
    for label, q, style in (("uniform, p", p[t], "-"), ("p w", p[t] * w[t], "-"), ("oracle", p[t] * oracle, "--")):
        axes.plot(t, q / q.sum() * len(t), style, label=label)
    axes.set(xlabel="t", ylabel="density over p", title="Proposals", ylim=(0, None))
    axes.legend(fontsize=8)
