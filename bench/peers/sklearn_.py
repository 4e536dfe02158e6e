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


def shrinkage(arrays, spec):
    """Ridge on one-hot groups at C = tau^2, from a sparse matrix that is prepared beforehand.

    The other columns get the same penalty, which scikit-learn cannot tell apart; with so many rows it hardly matters.
    """
    from scipy import sparse

    X, y = np.ascontiguousarray(arrays["X"][1:].T), arrays["y"]
    codes = np.unique(arrays["g"], return_inverse=True)[1]
    one_hot = sparse.csr_matrix((np.ones(len(y)), codes, np.arange(len(y) + 1)))
    design = sparse.hstack([sparse.csr_matrix(X), one_hot], format="csr")

    def run():
        model = LogisticRegression(C=spec["tau"] ** 2, solver="lbfgs", max_iter=1000).fit(design, y)
        return {"intercept": float(model.intercept_[0]), "model": "one-hot ridge at a given lambda"}

    return run
