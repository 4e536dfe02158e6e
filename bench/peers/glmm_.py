"""glmm (Rust): Laplace's approximation or adaptive quadrature."""

import glmm


def describe():
    """Version."""
    from importlib.metadata import version

    return {"version": version("glmm")}


def mixed(arrays, spec):
    """Random effects of one factor, or two."""
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
