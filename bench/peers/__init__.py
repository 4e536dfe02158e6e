"""Who is measured: the name of each contender, whose interpreter runs it, and what must be installed there.

A Python contender is a module of this folder. For each task it covers it has a function `task(arrays, spec)` that
prepares what is not timed and returns a function without arguments, which is timed and returns a dict: `objective` (a
log-likelihood where there is one) and whatever else is worth seeing. An R contender is a function of `peers.R`. Such
modules run in the peers' interpreter: they import nothing of ours, jaxglmm's own excepted.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """A program that is measured.

    Attributes
    ----------
    module : str
        Module of this folder, or function of peers.R.
    runs_in : {"ours", "peers", "R"}
        This interpreter, the one of `--peers-python`, or Rscript.
    needs : tuple of str
        Packages that must be there.
    compiles : bool
        Whether its first run is told apart (as the time with compilation).
    environment : dict of str to str
    """

    module: str
    runs_in: str
    needs: tuple[str, ...]
    compiles: bool = False
    environment: dict[str, str] = field(default_factory=dict)


CONTENDERS = {
    "jaxglmm": Contender("ours", "ours", ("jaxglmm",), compiles=True),
    "jaxglmm-plain": Contender("ours", "ours", ("jaxglmm",), True, {"JAXGLMM_KERNELS": "plain"}),
    "gpboost": Contender("gpboost_", "peers", ("gpboost",)),
    "glmm": Contender("glmm_", "peers", ("glmm",)),
    "sklearn": Contender("sklearn_", "peers", ("sklearn",)),
    "statsmodels": Contender("statsmodels_", "peers", ("statsmodels",)),
    "polars": Contender("polars_", "peers", ("polars",)),
    "glmnet": Contender("glmnet", "R", ("glmnet",)),
    "glmer": Contender("glmer", "R", ("lme4",)),
    "glmmTMB": Contender("glmmTMB", "R", ("glmmTMB",)),
}
