"""scikit-learn: the plain logistic regression, without any random effect, that an analyst would run instead."""

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression


def describe():
    """Version."""
    return {"version": sklearn.__version__}


def mixed(arrays, spec):
    """lbfgs without a penalty; its objective is that of the model without random effects."""
    if spec["family"] != "binomial" or spec.get("slope") or spec.get("nodes", 1) != 1:
        return None
    X, y = np.ascontiguousarray(arrays["X"].T), arrays["y"]

    def run():
        model = LogisticRegression(C=np.inf, fit_intercept=False, solver="lbfgs", max_iter=1000).fit(X, y)
        eta = X @ model.coef_[0]
        return {"objective": float(y @ eta - np.logaddexp(0, eta).sum()), "model": "no random effects"}

    return run
