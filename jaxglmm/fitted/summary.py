"""A fit's summary: what it says, and how it is shown in a terminal, in a pipe and in a notebook."""

import html
import io
import math
import os
import sys
from dataclasses import dataclass

import numpy as np

from jaxglmm.inference.wald import coefficients


_METHODS = {
    "laplace": "maximum likelihood (Laplace approximation)",
    "agq": "maximum likelihood (adaptive Gauss-Hermite quadrature, {} nodes per effect)",
    "ml": "maximum likelihood",
    "reml": "restricted maximum likelihood (REML)",
    "joint": "joint penalised likelihood at a held covariance",
    "glm": "maximum likelihood",
}


@dataclass(frozen=True)
class Block:
    """A titled table of strings; the first `labels` columns are left-aligned."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    labels: int


@dataclass(frozen=True)
class Summary:
    """Lines and tables in order; `str()` gives a rich table on a terminal and plain text elsewhere.

    Attributes
    ----------
    title : str
    parts : list of str or Block
    """

    title: str
    parts: list[str | Block]

    @property
    def text(self) -> str:
        """Plain text, whatever standard output is."""
        lines = [self.title]
        for before, part in zip([self.title, *self.parts], self.parts, strict=False):
            lines += [""] if isinstance(part, Block) or isinstance(before, Block) else []
            lines += [part] if isinstance(part, str) else [part.title, *_aligned(part)]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        if sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            return self._terminal()
        return self.text

    __repr__ = __str__

    def __rich_console__(self, console, options):
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        yield f"[bold]{escape(self.title)}[/bold]"
        for part in self.parts:
            if isinstance(part, str):
                yield escape(part)
                continue
            table = Table(
                title=part.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
            )
            for j, name in enumerate(part.header):
                table.add_column(name, justify="left" if j < part.labels else "right")
            for row in part.rows:
                table.add_row(*map(escape, row))
            yield table

    def _terminal(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, force_terminal=True, highlight=False).print(self)
        return out.getvalue()

    def _repr_html_(self) -> str:
        out = [f"<h4>{html.escape(self.title)}</h4>"]
        for part in self.parts:
            if isinstance(part, str):
                out.append(f"<div>{html.escape(part)}</div>")
                continue
            side = lambda j, part=part: f' style="text-align:{"left" if j < part.labels else "right"}"'
            head = "".join(f"<th{side(j)}>{html.escape(name)}</th>" for j, name in enumerate(part.header))
            body = "".join(
                "<tr>" + "".join(f"<td{side(j)}>{html.escape(cell)}</td>" for j, cell in enumerate(row)) + "</tr>"
                for row in part.rows
            )
            out.append(
                f"<table><caption>{html.escape(part.title)}</caption><thead><tr>{head}</tr></thead>"
                f"<tbody>{body}</tbody></table>"
            )
        return "\n".join(out)


def summarise(fit) -> Summary:
    """The summary of a fit."""
    family = fit.family
    linear = (family.name, family.link) == ("gaussian", "identity")
    kind = ("Linear" if linear else "Generalized linear") + (" mixed" if fit.groups else "") + " model"
    parts: list[str | Block] = [
        f"Formula: {fit.formula}",
        f"Family: {family.name} ({family.link} link)",
        *([f"Modelled: {fit.modelled}"] if fit.modelled else []),
        *([f"Penalty: {fit.penalised['text']}; KKT residual {fit.penalised['kkt']:.1g}"] if fit.penalised else []),
        *([f"Prior: {fit.penalised['prior']}; estimates are at the posterior mode"] if _prior(fit) else []),
        _rows_line(fit),
        _fit_line(fit),
    ]
    if fit.groups:
        parts.append(_random_block(fit))
        parts += _integrated_line(fit)
    elif fit.dispersion is not None:
        parts.append(_dispersion_line(fit))
    if fit.groups and fit.dispersion is not None and not linear:
        parts.append(_dispersion_line(fit))
    if fit.names:
        parts.append(_fixed_block(fit))
    if fit.dropped:
        parts.append(_dropped_line(fit))
    if fit.penalised is not None and (fit.penalised["lam"] != 0 or _prior(fit)):
        kind = f"Penalised {kind[0].lower()}{kind[1:]}"
    return Summary(f"{kind} fit by {_METHODS[fit.method].format(fit.n_agq)}", parts + _convergence_lines(fit))


def _prior(fit):
    return fit.penalised and fit.penalised["prior"]


def _rows_line(fit) -> str:
    line = f"Rows: {fit.n:,}"
    if fit.n_dropped:
        missing = ", ".join(f"{name} {count:,}" for name, count in fit.state.dropped_by.items())
        line += f" ({fit.n_dropped:,} dropped for missing values: {missing})"
    groups = [f"{name}, {levels:,}" for name, levels in fit.groups.items()]
    return line + (f"; groups: {'; '.join(groups)}" if groups else "")


def _fit_line(fit) -> str:
    name = "REML log-likelihood" if fit.method == "reml" else "Log-likelihood"
    return f"{name}: {fit.loglik:.4f} (df {fit.df:.6g}), AIC {fit.aic:.2f}, BIC {fit.bic:.2f}"


def _dispersion_line(fit) -> str:
    meaning = {
        "sigma": "residual standard deviation",
        "theta": "Var = mu + mu^2/theta",
        "shape": "Var = mu^2/shape",
        "phi": "Var = mu(1 - mu)/(1 + phi)",
    }[fit.dispersion["name"]]
    if math.isinf(fit.dispersion["value"]):
        return f"Dispersion: {fit.dispersion['name']} = inf: no overdispersion, the {fit.family.limit} fit is the limit"
    return f"Dispersion: {fit.dispersion['name']} = {fit.dispersion['value']:.5g} ({meaning})"


def _random_block(fit) -> Block:
    rows = list(fit.varcorr)
    variances, sds = [r["variance"] for r in rows], [r["sd"] for r in rows]
    residual = fit.dispersion if fit.dispersion is not None and fit.dispersion["name"] == "sigma" else None
    if residual is not None:
        variances.append(residual["value"] ** 2)
        sds.append(residual["value"])
    cells = list(zip(_numbers(variances), _numbers(sds), strict=True))
    out, before, shown = [], [], None
    for row, (variance, sd) in zip(rows, cells[: len(rows)], strict=True):
        # As lme4: below the diagonal only, one column for each earlier effect of the factor.
        before = [] if row["group"] != shown else before
        corr = [f"{row['corr'][name]:.2f}" if name in row["corr"] else "" for name in before]
        out.append(("" if row["group"] == shown else row["group"], row["name"], variance, sd, " ".join(corr).rstrip()))
        shown, before = row["group"], [*before, row["name"]]
    if residual is not None:
        out.append(("Residual", "", *cells[-1], ""))
    columns = ("Group", "Name", "Variance", "Std.Dev.", "Corr")
    if not any(row[-1] for row in out):
        out, columns = [row[:-1] for row in out], columns[:-1]
    return Block("Random effects:", columns, out, 2)


def _integrated_line(fit) -> list[str]:
    """The prior that uncertain group effects are integrated under, where they are."""
    prior = fit.sd_prior
    return [f"Intervals of group effects and predictions: integrated over the Std.Dev., prior {prior}"] if prior else []


def _fixed_block(fit) -> Block:
    c = coefficients(fit.state)
    kind = "z" if c.df is None else "t"
    columns = [c.names, _numbers(c.estimate), _numbers(c.se)]
    header = ["", "Estimate", "Std. Error"]
    if c.df is not None:
        columns.append([f"{v:.1f}" for v in c.df])
        header.append("df")
    columns += [[f"{v:.3f}" for v in c.statistic], [_p_value(v) for v in c.p]]
    header += [f"{kind} value", f"P(>|{kind}|)"]
    return Block("Fixed effects:", tuple(header), list(zip(*columns, strict=True)), 1)


def _dropped_line(fit) -> str:
    some = ", ".join(fit.dropped[:8]) + (f" and {len(fit.dropped) - 8} more" if len(fit.dropped) > 8 else "")
    return f"Left out, for no estimate is determined for them: {some}"


def _convergence_lines(fit) -> list[str]:
    c = fit.convergence
    reached = "Converged to a local maximum" if fit.groups else "Converged"
    state = reached if c.converged else f"NOT converged ({c.reason})"
    lines = [
        f"{state}: Newton decrement {c.decrement:.2g}, {c.iterations} evaluations, {c.passes:g} passes over the rows"
    ]
    if c.loglik_se:
        lines.append(f"The log-likelihood is an estimate, Monte-Carlo standard error {c.loglik_se:.2g} ({c.solver})")
    if fit.method == "laplace" and c.checked_nodes is None and not c.warnings:
        lines.append("Laplace's approximation was not looked at with quadrature nodes")
    if c.gap is not None:
        nodes = c.checked_nodes if c.n_agq == 1 else c.n_agq
        lines.append(
            f"Quadrature: {nodes} nodes per effect; log-likelihood {c.gap:+.4g} against Laplace at the same point"
        )
    if c.checked_gap is not None and c.n_agq != 1 and abs(c.checked_gap) >= 1e-3:
        lines.append(f"With {c.checked_nodes} nodes the log-likelihood at the same point is {c.checked_gap:+.2g} off")
    if c.singular:
        score = (
            ""
            if c.score_at_zero is None
            else f"; slope of the log-likelihood in the variance at zero: {c.score_at_zero:.4g}"
        )
        lines.append(f"Singular: a variance is zero, or a correlation is 1 in size{score}")
    return lines + [f"Warning: {text}" for text in c.warnings]


def _numbers(values) -> list[str]:
    """Numbers with common decimals: about five digits of the largest, four of the smallest."""
    sizes = np.abs([v for v in values if math.isfinite(v) and v != 0])
    if not len(sizes):
        return [f"{v:g}" for v in values]
    large, small = (math.floor(math.log10(v)) for v in (sizes.max(), sizes.min()))
    if large - small > 6 or large > 7:
        return [f"{v:.5g}" for v in values]
    decimals = min(max(4 - large, 3 - small, 0), 6)
    return [f"{v:.{decimals}f}" for v in values]


def _p_value(p: float) -> str:
    return "<2e-16" if p < 2e-16 else f"{p:.3g}"


def _aligned(block: Block) -> list[str]:
    cells = [block.header, *block.rows]
    widths = [max(len(row[j]) for row in cells) for j in range(len(block.header))]
    line = lambda row: "  ".join(
        cell.ljust(width) if j < block.labels else cell.rjust(width)
        for j, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    return [" " + line(row) for row in cells]
