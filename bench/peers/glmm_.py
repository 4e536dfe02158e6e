"""glmm (Rust): Laplace's approximation or adaptive quadrature."""

import glmm
import numpy as np


def describe():
    """Version."""
    from importlib.metadata import version

    return {"version": version("glmm")}


def mixed(arrays, spec):
    """Random effects of one factor, or two; with two it answers by Laplace's approximation whatever was asked for."""
    if "h" in arrays and spec.get("nodes", 1) != 1:
        return None
    X = arrays["X"]
    data = {name: arrays[name] for name in ("y", "g", "h") if name in arrays}
    data |= {f"x{j}": column for j, column in enumerate(X) if j}
    fixed = " + ".join(f"x{j}" for j in range(1, len(X))) or "1"
    second = " + (1 | h)" if "h" in arrays else ""
    formula = f"y ~ {fixed} + ({'1 + x1' if spec.get('slope') else '1'} | g){second}"
    options = {"reml": False} if spec["family"] == "gaussian" else {"nagq": spec.get("nodes", 1)}
    if spec["family"] == "gamma":
        options["link"] = "log"

    def run():
        fit = glmm.fit(data, formula, family=spec["family"], **options)
        return {"objective": float(fit.loglik)}

    return run


def strata(arrays, spec):
    """One logistic fit after the other; the table is taken apart before."""
    X, (sizes, order) = arrays["X"], (np.bincount(arrays["s"]), np.argsort(arrays["s"], kind="stable"))
    parts = np.split(order, np.cumsum(sizes)[:-1])
    tables = [{"y": arrays["y"][p], "g": arrays["g"][p]} | {f"x{j}": X[j][p] for j in range(1, len(X))} for p in parts]
    formula = f"y ~ {' + '.join(f'x{j}' for j in range(1, len(X)))} + (1 | g)"

    def run():
        fits = [glmm.fit(data, formula, family="binomial", nagq=1) for data in tables]
        return {"objective": float(sum(fit.loglik for fit in fits))}

    return run
