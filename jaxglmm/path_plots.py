"""Pictures of a path and of ways to shrink, drawn as those of `jaxglmm.plots`."""

import numpy as np

from jaxglmm.plots import BLUE, GREY, PALE, RED, _done, _figure


_MOST_NAMES = 12  # coefficients named at the path's end


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
