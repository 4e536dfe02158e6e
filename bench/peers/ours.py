"""jaxglmm."""

import numpy as np


def describe():
    """Version, whether the native library is loaded, and why plain JAX computes where it does."""
    import jaxglmm
    from jaxglmm.ops.native import why_plain

    return {"version": jaxglmm.__version__, "native": str(jaxglmm.native_status()), "plain": why_plain()}


def table(arrays):
    """The arrays as a mapping of columns: y, g, h and x1, x2, ...; the constant first column is the intercept."""
    columns = {f"x{j}": column for j, column in enumerate(arrays["X"]) if j}
    return {name: arrays[name] for name in ("y", "g", "h") if name in arrays} | columns


def formula(arrays, spec):
    """`y ~ x1 + ... + (1 | g)`, with a slope on x1 where the case has one, and `(1 | h)` for a second factor."""
    fixed = " + ".join(f"x{j}" for j in range(1, len(arrays["X"]))) or "1"
    second = " + (1 | h)" if "h" in arrays else ""
    return f"y ~ {fixed} + ({'1 + x1' if spec.get('slope') else '1'} | g){second}"


def told(fit):
    """What the table shows of a fit."""
    return {
        "objective": fit.loglik,
        "sd": [row["sd"] for row in fit.varcorr],
        "intercept": next(iter(fit.fixef.values())),
        "se": next(iter(fit.fixef_se.values())),
        "passes": fit.convergence.passes,
        "decrement": fit.convergence.decrement,
    }


def mixed(arrays, spec):
    """One grouping factor, or two; standard errors and group effects are part of a fit."""
    import jaxglmm

    data, text, nodes = table(arrays), formula(arrays, spec), spec.get("nodes", 1)
    family = {"gamma": "Gamma"}.get(spec["family"])
    family = jaxglmm.Gamma(link="log") if family else spec["family"]
    exact = spec["family"] == "gaussian"
    method = {} if exact else {"method": "laplace"} if nodes == 1 else {"method": "agq", "n_agq": nodes}
    if "solver" in spec:
        method["solver"] = spec["solver"]

    def run():
        return told(jaxglmm.fit(text, data, family=family, progress=False, **method))

    return run


def cold_start(arrays, spec):
    """`jaxglmm fit` in a process of its own; its stored programs are those of earlier runs."""
    import json
    import subprocess
    import sys

    start = "import sys; from jaxglmm.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", start, "fit", spec["formula"], "data.csv", "--family", "binomial"]
    command += ["--method", "laplace", "--json"]

    def run():
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {"objective": json.loads(done.stdout)["loglik"]}

    return run


def file(arrays, spec):
    """From a Parquet file, rows stored in float32."""
    import jaxglmm

    options = {"family": spec["family"], "method": "laplace", "precision": "mixed", "progress": False}

    def run():
        fit = jaxglmm.fit(spec["formula"], "data.parquet", **options)
        return told(fit) | {"timings": fit.convergence.timings}

    return run


def ingest(arrays, spec):
    """From the file to the model, and its table of group effects on disk; `ingest` is the time without the fit."""
    import time

    import jaxglmm

    def run():
        began = time.perf_counter()
        fit = jaxglmm.fit(spec["formula"], "data.parquet", family=spec["family"], method="laplace", progress=False)
        fit.ranef().to_parquet("ranef.parquet")
        spent = time.perf_counter() - began
        return told(fit) | {"ingest": spent - fit.convergence.timings["fit"]}

    return run


def path(arrays, spec):
    """A lasso path with the random intercept's standard deviation estimated at each lambda."""
    import jaxglmm

    data, text = table(arrays), formula(arrays, spec)

    def run():
        found = jaxglmm.fit_path(
            text, data, family=spec["family"], method="laplace", n_lambdas=spec["lambdas"], tol=1e-6, progress=False
        )
        return {
            "lambdas": len(found.lambdas), "columns": int((found.coef[-1] != 0).sum()) - 1, "kkt": found.kkt.max(),
            "passes": found.passes, "sd": [float(found.theta["g"][-1])],
        }  # fmt: skip

    return run


def wide(arrays, spec):
    """A lasso path over a matrix beside the formula, sparse or dense."""
    from scipy import sparse

    import jaxglmm

    if "wide" in arrays:
        X = np.ascontiguousarray(arrays["wide"].T)
    else:
        indices, indptr = (arrays[name].astype(np.int32) for name in ("indices", "indptr"))
        X = sparse.csc_matrix((arrays["data"], indices, indptr), (len(arrays["y"]), spec["columns"]))
    data = {"y": arrays["y"], "g": arrays["g"]}

    def run():
        found = jaxglmm.fit_path(
            "y ~ 1 + (1 | g)", data, X=X, family=spec["family"], method="laplace", n_lambdas=spec["lambdas"],
            lambda_min_ratio=spec["ratio"], tol=1e-6, progress=False,
        )  # fmt: skip
        return {
            "lambdas": len(found.lambdas), "columns": int((found.coef[-1] != 0).sum()) - 1, "kkt": found.kkt.max(),
            "passes": found.passes, "sd": [float(found.theta["g"][-1])],
        }  # fmt: skip

    return run


def shrinkage(arrays, spec):
    """A random intercept with tau estimated, or the one-hot ridge at a given one, with the effects of all groups.

    From rows that are laid out beforehand, as scikit-learn's matrix is.
    """
    import jax

    from jaxglmm.estimation import estimate_problem
    from jaxglmm.formula.frame import model_frame
    from jaxglmm.model.families import get_family
    from jaxglmm.optimise.estimate import modes_of
    from jaxglmm.problem import make_problem

    family = get_family(spec["family"])
    frame = model_frame(formula(arrays, spec), table(arrays), family=family)
    method = {"method": "laplace"}
    if not spec["estimated"]:
        method = {"method": "joint", "theta": {"g": spec["tau"]}}
    with jax.enable_x64(True):
        problem = make_problem(frame, family, estimated=spec["estimated"])

    def run():
        with jax.enable_x64(True):
            estimate, posteriors = estimate_problem(problem, **method)
            effects = modes_of(posteriors)[0]  # what a ridge has of an ID: its coefficient
        return {
            "sd": [float(abs(estimate.factors[0][0, 0]))], "passes": estimate.convergence.passes,
            "decrement": estimate.convergence.decrement, "largest": float(abs(effects).max()),
        }  # fmt: skip

    return run


def strata(arrays, spec):
    """One logistic fit for each stratum, by Laplace's approximation."""
    import jaxglmm

    data, text = table(arrays) | {"s": arrays["s"]}, formula(arrays, spec)

    def run():
        fits = jaxglmm.fit_each(text, data, by="s", family="binomial", method="laplace", progress=False)
        return {"objective": float(fits.loglik.sum()), "failed": len(fits.failed)}

    return run


def refits(arrays, spec):
    """A Gaussian model to each of many responses, by maximum likelihood."""
    import jaxglmm

    data, text = table(arrays), formula(arrays, spec).removeprefix("y ")

    def run():
        fits = jaxglmm.fit_many(text, data, responses=arrays["Y"].T, progress=False)
        return {"objective": float(fits.loglik.sum()), "failed": len(fits.failed)}

    return run


def responses(arrays, spec):
    """A logistic model to each of many responses, together or one after the other."""
    import jaxglmm

    data, text = table(arrays), formula(arrays, spec).removeprefix("y ")
    options = {"family": "binomial", "method": "laplace", "progress": False}
    if spec["way"] == "together":
        return lambda: {
            "objective": float(jaxglmm.fit_many(text, data, responses=arrays["Y"].T, **options).loglik.sum())
        }
    return lambda: {
        "objective": sum(jaxglmm.fit(f"y {text}", data | {"y": y}, throw=False, **options).loglik for y in arrays["Y"])
    }


def bootstrap(arrays, spec):
    """Parametric replicates of a logistic fit; the fit itself is not timed."""
    import jaxglmm

    fit = jaxglmm.fit(formula(arrays, spec), table(arrays), family="binomial", method="laplace", progress=False)

    def run():
        told = fit.bootstrap(spec["replicates"], seed=1, progress=False).table()
        return {"objective": None, "se": list(told["se"])}

    return run
