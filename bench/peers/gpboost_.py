"""GPBoost: Laplace's approximation, its own optimiser and defaults."""

import gpboost
import numpy as np


LIKELIHOODS = {
    "binomial": "bernoulli_logit",
    "poisson": "poisson",
    "gaussian": "gaussian",
    "gamma": "gamma",
    "negativebinomial": "negative_binomial",
}


def describe():
    """Version."""
    return {"version": gpboost.__version__}


def mixed(arrays, spec):
    """Random intercepts; the group identifiers are indexed inside the timed part, as they are in ours."""
    if spec.get("slope") or spec.get("nodes", 1) != 1:
        return None
    y, X, g = arrays["y"], arrays["X"].T, np.column_stack([arrays[name] for name in ("g", "h") if name in arrays])

    def run():
        model = gpboost.GPModel(group_data=g, likelihood=LIKELIHOODS[spec["family"]])
        model.fit(y=y, X=X)
        # The value is the negative log-likelihood, of a normal response with all constants.
        return {
            "objective": -float(model.get_current_neg_log_likelihood()),
            "sd": [float(v) ** 0.5 for v in model.get_cov_pars(format_pandas=False).ravel()[-g.shape[1] :]],
            "intercept": float(model.get_coef(format_pandas=False).ravel()[0]),
        }

    return run
