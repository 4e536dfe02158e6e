"""Pictures of a fit: group effects, shrinkage, calibration, residuals, the optimiser's way.

matplotlib is imported when a picture is drawn. With `path` a picture is drawn off screen and written; without, it
belongs to pyplot, so that a notebook shows it.
"""

from contextlib import nullcontext

import numpy as np

from jaxglmm.arguments import choice, optional, path as paths, refuse, takes, text, whole
from jaxglmm.errors import DataError


BLUE, RED, GREY, PALE = "#20639b", "#c8553d", "#8a8f98", "#d9dde3"
_MOST_LABELS = 60  # levels that can be read side by side
_MOST_POINTS = 200  # levels that can be told apart
_TAIL = 12  # levels named at each end when there are more


def _shown(name, value):
    """A fit, or what has what a picture shows of one."""
    if not any(hasattr(value, part) for part in ("varcorr", "fitted", "convergence")):
        refuse(name, "a fitted model, as jaxglmm.fit returns it", value)


@takes(fit=_shown, group=optional(text), term=optional(text), path=optional(paths))
def caterpillar(fit, group=None, term=None, *, path=None):
    """Group effects in order of size, posterior means with the 95 % intervals of `fit.ranef(interval=0.95)`.

    The intervals hold the uncertainty of the parameters where that is known, so that they have a length also where the
    standard deviation between levels is estimated as zero.

    Up to 60 levels are named one by one; beyond 200 a band shows the mean interval of like ranks, and the
    ends are drawn apart, so that the picture serves a million levels.

    Parameters
    ----------
    fit : Fit
    group : str, optional
        Grouping factor; by default the only one.
    term : str, optional
        Effect, such as "Days"; by default the first.
    path : str or path, optional
        File to write (.png, .svg, .pdf).

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        When the fit has no such group or term.
    """
    group, term, effects = _effects(fit, group, term, interval=0.95)
    order = np.argsort(effects["mean"], kind="stable")
    level, mean, lower, upper = (effects[k][order] for k in ("level", "mean", "lower", "upper"))
    ends = np.stack([np.minimum(lower, mean), np.maximum(upper, mean)])
    G = len(mean)
    title = f"{term} by {group}: {G:,} levels"
    if G > _MOST_POINTS:
        return _long_caterpillar(level, mean, ends, group, title, path)
    named = G <= _MOST_LABELS
    fig = _figure(path, (6.5, max(2.2, 0.9 + (0.165 if named else 0.045) * G)))
    ax = fig.add_subplot()
    _whiskers(ax, level, mean, ends, labels=named)
    if not named:
        ax.set_ylabel(f"{group}, ordered")
    ax.set_xlabel("effect on the link scale, with 95 % interval")
    ax.set_title(title, loc="left")
    return _done(fig, path)


def _whiskers(ax, level, mean, ends, *, labels=True):
    at = np.arange(len(mean))
    clear = (ends[0] > 0) | (ends[1] < 0)
    reach = np.abs(ends - mean)
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    for mask, color in ((clear, BLUE), (~clear, GREY)):
        ax.errorbar(
            mean[mask], at[mask], xerr=reach[:, mask], fmt="o", ms=3, lw=1, color=color, ecolor=color, capsize=0
        )
    ax.set_ylim(-0.7, len(mean) - 0.3)
    ax.set_yticks(at if labels else [], [_short(v) for v in level] if labels else [], fontsize=7)
    ax.grid(axis="x", color=PALE, lw=0.6)


def _short(label, most=24):
    text = str(label)
    return text if len(text) <= most else text[: most - 1] + "…"


def _long_caterpillar(level, mean, ends, group, title, path):
    fig = _figure(path, (9.5, 5.2))
    grid = fig.add_gridspec(2, 2, width_ratios=(2.1, 1))
    ax, top, bottom = fig.add_subplot(grid[:, 0]), fig.add_subplot(grid[0, 1]), fig.add_subplot(grid[1, 1])
    G = len(mean)
    edges = np.linspace(0, G, min(G // 20, 300) + 1).astype(int)
    centre, count = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    clear = np.mean((ends[0] > 0) | (ends[1] < 0))
    ax.axhline(0, color=GREY, lw=0.8)
    at = np.unique(np.linspace(0, G - 1, 2000).astype(int))
    low, high = (np.interp(at + 0.5, centre, np.add.reduceat(end - mean, edges[:-1]) / count) for end in ends)
    ax.fill_between(
        at + 0.5, mean[at] + low, mean[at] + high, color=BLUE, alpha=0.18, lw=0,
        label=f"95 % interval, mean of like ranks ({clear:.0%} of all intervals are clear of 0)",
    )  # fmt: skip
    ax.plot(at + 0.5, mean[at], color=BLUE, lw=1.6, label="posterior mean")
    ax.set(xlim=(0, G), xlabel=f"rank of the {group}", ylabel="effect on the link scale")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.grid(color=PALE, lw=0.6)
    ax.legend(loc="upper left", frameon=False, fontsize=8)
    ax.set_title(title, loc="left")
    for side, part, name in ((top, slice(-_TAIL, None), "highest"), (bottom, slice(None, _TAIL), "lowest")):
        _whiskers(side, level[part], mean[part], ends[:, part])
        side.set_title(f"the {_TAIL} {name}", loc="left", fontsize=9)
    limits = [f(*(s.get_xlim()[i] for s in (top, bottom))) for i, f in ((0, min), (1, max))]
    for side in (top, bottom):
        side.set_xlim(limits)
    top.tick_params(labelbottom=False)
    bottom.set_xlabel("effect, with 95 % interval")
    return _done(fig, path)


@takes(fit=_shown, group=optional(text), term=optional(text), path=optional(paths))
def shrinkage(fit, group=None, term=None, *, path=None):
    """Each group's own estimate against its shrunken one, coloured by its number of rows.

    The own estimate is one Newton step from the mode without the prior, b / (1 - sd^2 / tau^2), where sd comes from the
    curvature at the mode: the exact group mean for Gaussian responses, and finite where all of a group's responses
    are alike.

    Parameters
    ----------
    fit, group, term, path
        As in `caterpillar`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    group, term, effects = _effects(fit, group, term)
    tau = _sd(fit, group, term)
    if tau == 0:
        raise DataError(
            f"the standard deviation of {term!r} by {group!r} is zero: every effect is shrunken to 0, and there is "
            "nothing to draw"
        )
    shrunken, rows = effects["estimate"], effects["n"]
    kept = 1 - np.square(effects["sd"] / tau)
    drawn = kept > 1e-3  # with less information a group says nothing on its own
    own, shrunken, rows = shrunken[drawn] / kept[drawn], shrunken[drawn], rows[drawn]
    fig = _figure(path, (6.2, 5.2))
    ax = fig.add_subplot()
    span = np.array([min(own.min(), shrunken.min()), max(own.max(), shrunken.max())])
    ax.plot(span, span, color=GREY, lw=0.9, ls=(0, (4, 3)), zorder=0)
    ax.annotate(
        "no shrinkage", span[[1, 1]], xytext=(-2, 4), textcoords="offset points", ha="right", color=GREY, size=8
    )
    ax.axhline(0, color=PALE, lw=0.9, zorder=0)
    color = {"cmap": "viridis", "norm": _size_norm(rows)}
    if len(own) > 5000:
        drawing = ax.hexbin(own, shrunken, C=rows, reduce_C_function=np.mean, gridsize=70, mincnt=1, lw=0.1, **color)
        label = f"rows of a {group}, mean"
    else:
        # Equal groups give equal points: order by size so that small groups do not hide large ones.
        o = np.argsort(rows, kind="stable")
        drawing = ax.scatter(own[o], shrunken[o], c=rows[o], s=18, lw=0.3, edgecolor="white", **color)
        label = f"rows of a {group}"
    bar = fig.colorbar(drawing, label=label)
    bar.ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.set(xlabel=f"{term} of a {group} from its own rows alone", ylabel="shrunken by the model")
    ax.set_title(f"Shrinkage: {len(own):,} levels, sd {tau:.3g}", loc="left")
    return _done(fig, path)


def _size_norm(rows):
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(rows.min()), float(rows.max())
    return LogNorm(low, high) if low > 0 and high > 20 * low else Normalize(low, max(high, low + 1))


@takes(
    effects=optional(choice("conditional", "mode", "marginal", "population")),
    fit=_shown,
    bins=whole(2, 10**6),
    path=optional(paths),
)
def calibration(fit, data=None, observed=None, *, effects=None, bins=10, path=None):
    """Predicted against observed means in bins of equal numbers of rows, with two standard errors of the observed.

    Parameters
    ----------
    fit : Fit
    data : table, optional
        New data; by default the rows of the fit.
    observed : (m,) array, optional
        Responses of the rows of `data`.
    effects : str, optional
        As in `Fit.predict`; by default "conditional" for new data, and "marginal" for the rows of the fit, whose
        groups' effects have seen the responses already.
    bins : int
    path : str or path, optional

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        When `data` comes without `observed`, or they differ in length.
    """
    if (data is None) != (observed is None):
        raise DataError("calibration needs `data` and `observed` together, or neither for the rows of the fit")
    if data is None:
        predicted = fit.predict(effects=effects or "marginal")
        observed = fit.fitted + fit.residuals("response")
    else:
        predicted = fit.predict(data, effects=effects or "conditional")
        observed = np.asarray(observed, float)
        if observed.shape != predicted.shape:
            raise DataError(f"observed has {observed.size} values for {predicted.size} rows of data")
    kept = np.isfinite(predicted) & np.isfinite(observed)
    order = np.argsort(predicted[kept], kind="stable")
    p, y = predicted[kept][order], observed[kept][order]
    edges = np.unique(np.linspace(0, len(p), bins + 1).astype(int))
    start, count = edges[:-1], np.diff(edges)
    mean = lambda v: np.add.reduceat(v, start) / count
    expected, seen = mean(p), mean(y)
    error = np.sqrt(np.maximum(mean(np.square(y - p)), 0) / count)
    fig = _figure(path, (5.4, 5.2))
    ax = fig.add_subplot()
    low, high = min(expected.min(), (seen - 2 * error).min()), max(expected.max(), (seen + 2 * error).max())
    ax.plot([low, high], [low, high], color=GREY, lw=0.9, ls=(0, (4, 3)))
    ax.errorbar(expected, seen, yerr=2 * error, fmt="o", ms=5, lw=1.2, color=BLUE)
    ax.set(xlabel="mean prediction", ylabel="mean of the observed responses, +- 2 standard errors")
    ax.set_title(f"Calibration: {len(p):,} rows in {len(start)} bins", loc="left")
    ax.grid(color=PALE, lw=0.6)
    return _done(fig, path)


@takes(fit=_shown, path=optional(paths))
def qq(fit, *, path=None):
    """Randomised quantile residuals against normal quantiles, with a pointwise 95 % band for a correct model.

    Parameters
    ----------
    fit : Fit
        With the rows it was fitted to.
    path : str or path, optional

    Returns
    -------
    matplotlib.figure.Figure

    References
    ----------
    Dunn & Smyth (1996), J. Comp. Graph. Stat. 5, 236.
    """
    from scipy.special import betaincinv, ndtri

    r = np.sort(np.asarray(fit.residuals("quantile"), float))
    n = len(r)
    ends = np.arange(min(n, 300))
    at = np.unique(np.concatenate([ends, np.linspace(0, n - 1, 600).astype(int), n - 1 - ends]))
    rank = at + 1.0
    normal = ndtri((rank - 0.5) / n)
    low, high = (ndtri(betaincinv(rank, n - rank + 1, q)) for q in (0.025, 0.975))
    fig = _figure(path, (5.4, 5.2))
    ax = fig.add_subplot()
    ax.fill_between(normal, low, high, color=GREY, alpha=0.25, lw=0, label="95 % band, point by point")
    ax.plot(normal, normal, color=GREY, lw=0.9, ls=(0, (4, 3)))
    ax.plot(normal, r[at], "o", ms=2.5, color=BLUE)
    ax.set(xlabel="normal quantile", ylabel="randomised quantile residual")
    ax.set_title(f"Residuals: {n:,} rows", loc="left")
    ax.legend(loc="upper left", frameon=False, fontsize=8)
    ax.grid(color=PALE, lw=0.6)
    return _done(fig, path)


@takes(fit=_shown, path=optional(paths))
def trace(fit, *, path=None):
    """How the optimiser went: the log-likelihood still to be gained, and the Newton decrement, step by step.

    Where the decrement rises, a stage is done and the next begins: without random effects, by Laplace's approximation,
    with more and more nodes.

    Parameters
    ----------
    fit : Fit
    path : str or path, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.ticker import MaxNLocator

    steps = np.asarray(fit.convergence.trace, float).reshape(-1, 2)
    if not len(steps):
        raise DataError("this fit has no record of its steps; fit it again to draw them")
    value, decrement = steps.T
    fig = _figure(path, (6.5, 3.6))
    ax = fig.add_subplot()
    at = np.arange(1, len(steps) + 1)
    left = np.maximum(np.abs(value[-1] - value), 1e-13)
    ax.semilogy(at, left, "o-", ms=4, lw=1, color=BLUE, label="log-likelihood to be gained")
    ax.semilogy(at, np.maximum(decrement, 1e-16), "s-", ms=4, lw=1, color=RED, label="Newton decrement")
    ax.set(xlabel="step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("The optimiser's way", loc="left")
    ax.legend(frameon=False, fontsize=8)
    ax.grid(color=PALE, lw=0.6)
    return _done(fig, path)


def _figure(path, size):
    style = {"figsize": size, "layout": "constrained"}
    if path is not None:
        from matplotlib.figure import Figure

        return Figure(**style)
    from matplotlib import pyplot

    return pyplot.figure(**style)


def _done(fig, path):
    for ax in fig.axes:
        if ax.get_label() != "<colorbar>":
            ax.spines[["top", "right"]].set_visible(False)
    if path is not None:
        from jaxglmm.ops.files import replacing_file

        with nullcontext(path) if hasattr(path, "write") else replacing_file(path) as fresh:
            fig.savefig(fresh, dpi=144)
    return fig


def _effects(fit, group, term, **options):
    """The rows of `fit.ranef(group, **options)` for one term, as {column: array}."""
    groups = list(dict.fromkeys(v["group"] for v in fit.varcorr))
    if group is None and len(groups) == 1:
        group = groups[0]
    if group not in groups:
        raise DataError(f"group must be one of {groups or 'none: the fit has no random effects'}; found {group!r}")
    table = columns_of(fit.ranef(group, **options))
    names = list(dict.fromkeys(str(v) for v in table["term"]))
    term = names[0] if term is None else term
    if term not in names:
        raise DataError(f"term must be one of {names} for {group!r}; found {term!r}")
    rows = np.asarray(table["term"]).astype(str) == term
    return group, term, {name: np.asarray(v)[rows] for name, v in table.items()}


def _sd(fit, group, term):
    return next(v["sd"] for v in fit.varcorr if (v["group"], v["name"]) == (group, term))


def columns_of(table):
    """{name: array} of any kind of table."""
    if isinstance(table, dict):
        return {name: np.asarray(v) for name, v in table.items()}
    import narwhals as nw

    frame = nw.from_native(table)
    return {name: frame[name].to_numpy() for name in frame.columns}
