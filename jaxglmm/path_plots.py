"""Pictures of a path and of ways to shrink, drawn as those of `jaxglmm.plots`."""

import numpy as np

from jaxglmm.arguments import optional, path as paths, takes
from jaxglmm.plots import BLUE, GREY, PALE, RED, _done, _figure


_MOST_NAMES = 12  # coefficients named at the path's end
_MOST_POINTS = 20_000


@takes(path=optional(paths))
def plot_path(fit, path=None):
    """Coefficients against lambda; below, where there was cross-validation, the score of held-out rows.

    Coefficients are multiplied by nothing: they are those of the columns as they are. The upper axis counts those that
    are not zero.

    Parameters
    ----------
    fit : Path
    path : str or path, optional
        File to write (.png, .svg, .pdf).

    Returns
    -------
    matplotlib.figure.Figure
    """
    both = fit.cv is not None
    fig = _figure(path, (7.5, 7.0 if both else 4.4))
    axes = fig.subplots(2 if both else 1, 1, sharex=True, squeeze=False)[:, 0]
    positive = fit.lambdas > 0
    x, coef = np.log10(fit.lambdas[positive]), fit.coef[positive]
    moving = np.flatnonzero(np.ptp(coef, axis=0) > 0)
    moving = moving[[fit.names[j] != "Intercept" for j in moving]]
    order = moving[np.argsort(-np.abs(coef[-1, moving]), kind="stable")]
    ax = axes[0]
    ax.axhline(0, color=GREY, lw=0.8)
    for place, j in enumerate(order):
        named = place < _MOST_NAMES
        ax.plot(
            x,
            coef[:, j],
            lw=1.3 if named else 0.7,
            color=None if named else GREY,
            label=fit.names[j] if named else None,
        )
    ax.set_ylabel("coefficient")
    ax.set_title(f"{len(order)} coefficients, alpha {fit.alpha:g}", loc="left")
    if len(order):
        ax.legend(fontsize=7, frameon=False, ncols=2)
    marks = [(fit.best, "lambda.min" if both else "smallest BIC", BLUE)]
    if both:
        marks.append((fit.cv.one_se, "lambda.1se", RED))
        score, se = fit.cv.score[positive], fit.cv.se[positive]
        axes[1].fill_between(x, score - se, score + se, color=BLUE, alpha=0.18, lw=0, label="one standard error")
        axes[1].plot(x, score, color=BLUE, lw=1.5)
        axes[1].set_ylabel("held-out log-likelihood a row")
    for ax in axes:
        for at, name, color in marks:
            if fit.lambdas[at] > 0:
                ax.axvline(
                    np.log10(fit.lambdas[at]), color=color, lw=1, ls="--", label=name if ax is axes[-1] else None
                )
        ax.grid(color=PALE, lw=0.6)
    axes[-1].legend(*_labelled(axes[-1]), fontsize=7, frameon=False)
    axes[-1].set_xlabel("log10 lambda")
    axes[-1].invert_xaxis()
    _count_axis(axes[0], x, np.count_nonzero(coef[:, moving], axis=1))
    return _done(fig, path)


def _labelled(ax):
    handles, labels = ax.get_legend_handles_labels()
    return handles, labels


def _count_axis(ax, x, counts):
    top = ax.twiny()
    at = np.unique(np.linspace(0, len(x) - 1, 7).astype(int))
    top.set_xlim(ax.get_xlim())
    top.set_xticks(x[at], [str(c) for c in counts[at]], fontsize=7)
    top.set_xlabel("coefficients that are not zero", fontsize=8)


@takes(path=optional(paths))
def plot_pooling(found, path=None):
    """Each group's shrunken estimate against its own, and how much of it is kept, by the size of the group.

    Parameters
    ----------
    found : ShrinkageComparison
    path : str or path, optional
        File to write (.png, .svg, .pdf).

    Returns
    -------
    matplotlib.figure.Figure
    """
    g = found.groups
    at = np.flatnonzero(np.isfinite(g["raw"]))
    if len(at) > _MOST_POINTS:
        at = np.random.default_rng(0).choice(at, _MOST_POINTS, replace=False)
    n, raw = g["n"][at], g["raw"][at]
    tau = found.fits["random intercept"].varcorr[0]["sd"]
    fig = _figure(path, (10.0, 4.6))
    left, right = fig.subplots(1, 2)
    shown = left.scatter(raw, g["shrunken"][at], c=np.log2(n), s=12, cmap="viridis", linewidths=0)
    # Where all responses of a group are alike its own estimate is only bounded by the approximation: cut far points.
    limit = np.quantile(np.abs(raw), 0.99) * 1.05
    left.plot([-limit, limit], [-limit, limit], color=GREY, lw=0.8)
    left.axhline(0, color=GREY, lw=0.8)
    left.set(xlim=(-limit, limit), xlabel="own estimate", ylabel="shrunken estimate")
    left.set_title(f"{len(g['n']):,} levels of {found.group}, tau {tau:.3g}", loc="left")
    bar = fig.colorbar(shown, ax=left)
    ticks = np.unique(np.floor(np.linspace(np.log2(n.min()), np.log2(n.max()), 5)))
    ticks = ticks[ticks >= np.log2(n.min())]
    bar.set_ticks(ticks, labels=[f"{2**t:,.0f}" for t in ticks])
    bar.set_label("rows in the group")
    sizes = np.geomspace(max(n.min(), 1), max(n.max(), 2), 200)
    right.scatter(n, g["rho"][at], s=12, color=BLUE, alpha=0.5, linewidths=0, label="each group")
    curve = tau**2 / (tau**2 + 1 / (found.information * sizes))
    right.plot(sizes, curve, color=RED, lw=1.5, label="tau² / (tau² + sigma² / n)")
    right.set_xscale("log")
    ticks = 2.0 ** np.arange(0, np.ceil(np.log2(sizes[-1])) + 1)
    right.set_xticks(ticks, [f"{t:,.0f}" for t in ticks], fontsize=8)
    right.minorticks_off()
    right.set(
        xlim=(0.8 * sizes[0], 1.25 * sizes[-1]),
        ylim=(0, 1.02),
        xlabel="rows in the group",
        ylabel="share of the own estimate that is kept",
    )
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in (left, right):
        ax.grid(color=PALE, lw=0.6)
    return _done(fig, path)
