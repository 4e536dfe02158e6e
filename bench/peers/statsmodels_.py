"""statsmodels: linear mixed models."""

import statsmodels
import statsmodels.api as sm


def describe():
    """Version."""
    return {"version": statsmodels.__version__}


def mixed(arrays, spec):
    """Random intercepts of a normal response."""
    if spec["family"] != "gaussian" or spec.get("slope"):
        return None
    y, X, g = arrays["y"], arrays["X"].T, arrays["g"]

    def run():
        return {"objective": float(sm.MixedLM(y, X, g).fit(reml=False).llf)}

    return run
