"""Pictures of replicates: how the estimates from them lie around the fit's own."""

import numpy as np

from jaxglmm.arguments import optional, path as paths, share, takes
from jaxglmm.plots import BLUE, GREY, PALE, RED, _done, _figure, columns_of


_MOST = 30  # parameters in a picture


@takes(level=share(), path=optional(paths))
def histograms(replicates, level=0.95, *, path=None):
    """A histogram of each parameter's replicates, with the estimate and the interval of `Replicates.table`.

    Parameters
    ----------
    replicates : Replicates
    level : float
        Of the interval.
    path : str or path, optional
        File to write (.png, .svg, .pdf).

    Returns
    -------
    matplotlib.figure.Figure
    """
    table, names = columns_of(replicates.table(level)), replicates.parameters[:_MOST]
    used = replicates.replicates[np.isfinite(replicates.replicates).all(1)]
    across = min(len(names), 3)
    down = -(-len(names) // across)
    fig = _figure(path, (3.2 * across, 2.2 * down + 0.4))
    for k, name in enumerate(names):
        ax, values = fig.add_subplot(down, across, k + 1), used[:, k]
        ax.axvspan(table["lower"][k], table["upper"][k], color=PALE, lw=0, zorder=0)
        ax.hist(values, bins=int(np.clip(np.sqrt(len(values)), 8, 60)), color=BLUE)
        ax.axvline(table["estimate"][k], color=RED, lw=1.5)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_yticks([])
        ax.tick_params(labelsize=8, colors=GREY)
    told = {"jackknife": "left-out fits", "parametric": "parametric replicates", "cases": "replicates by cases"}
    interval = "normal" if replicates.kind == "jackknife" else "percentile"
    more = len(replicates.parameters) - len(names)
    title = f"{len(used):,} {told[replicates.kind]}; estimate, and {100 * level:g} % {interval} interval"
    fig.suptitle(title + (f"; {more} parameters more" if more else ""), fontsize=9, x=0.01, ha="left")
    return _done(fig, path)
