"""Reference distributions of likelihood ratios at the end of a parameter's range."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import jaxglmm as jg
from jaxglmm.inference import boundary
from jaxglmm.inference.beside_zeros import Cone, beside_zeros
from jaxglmm.inference.boundary import Component, WorkingModel, reference


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 320
    g, x = np.repeat(np.arange(40), 8), rng.normal(size=n)
    eta = 1 + x + rng.normal(size=40)[g] + 0.3 * x * rng.normal(size=40)[g]
    return pd.DataFrame({
        "y": eta + rng.normal(size=n), "x": x, "w": rng.normal(size=n), "g": g, "h": rng.integers(0, 25, n),
        "f": np.where(rng.random(n) < 0.5, "a", "b"),
        "c": rng.negative_binomial(3, 3 / (3 + np.exp(0.5 + 0.3 * eta))),
    })  # fmt: skip


def compared(data, smaller, larger, **options):
    return jg.anova(jg.fit(smaller, data, **options), jg.fit(larger, data, **options)).iloc[1]


@pytest.mark.parametrize(
    ("smaller", "larger", "df"),
    [
        ("y ~ x + (1 + x || g)", "y ~ x + (1 + x | g)", [1, 1]),  # a correlation is inside of its range
        ("y ~ x + (1 | g)", "y ~ x + (1 + x || g)", [0, 1]),  # a variance is not
        ("y ~ x + (1 | g)", "y ~ x + (1 + x | g)", [1, 2]),  # a variance with its covariance (Stram & Lee 1994)
        ("y ~ x + (1 + x | g)", "y ~ x + (1 + x + w | g)", [2, 3]),
        ("y ~ x + (1 | g)", "y ~ x + w + (1 + x || g)", [1, 2]),  # and a fixed effect beside it
        ("y ~ x + (1 | h)", "y ~ x + (1 | h) + (1 | g)", [0, 1]),
        ("y ~ f + (1 | g)", "y ~ f + (0 + f | g)", [1, 2]),  # the intercept is the sum of the dummies
        ("y ~ x + (0 + x | g)", "y ~ x + w + (0 + x | g)", [1, 1]),
    ],
)
@pytest.mark.parametrize("reml", [False, True])
def test_the_reference_looks_at_what_is_on_a_boundary(data, smaller, larger, df, reml):
    if reml and smaller.split("(")[0] != larger.split("(")[0]:
        pytest.skip("REML likelihoods of different fixed parts")
    row = compared(data, smaller, larger, reml=reml)
    each = [stats.chi2.sf(row["chisq"], k) if k else float(row["chisq"] <= 0) for k in df]
    assert row["p"] == pytest.approx(sum(each) / 2, rel=1e-9)


def test_a_held_covariance_is_a_point_inside(data):
    held, free = jg.fit("y ~ x + (1 | g)", data, theta={"g": 0.9}), jg.fit("y ~ x + (1 | g)", data)
    row = jg.anova(held, free).iloc[1]
    assert row["p"] == pytest.approx(stats.chi2.sf(row["chisq"], 1))


def test_overdispersion_against_none(data):
    for formula in ("c ~ x", "c ~ x + (1 | g)"):
        row = jg.anova(*(jg.fit(formula, data, family=family) for family in ("poisson", "negativebinomial"))).iloc[1]
        assert row["p"] == pytest.approx(0.5 * stats.chi2.sf(row["chisq"], 1))
    two = jg.anova(jg.fit("c ~ x", data, family="poisson"), jg.fit("c ~ x + (1 | g)", data, family="negativebinomial"))
    assert "2 variances at zero" in two["reference"][1] and two["chisq_df"][1] == 2


def test_models_that_are_not_nested_have_no_p(data):
    row = compared(data, "y ~ x + (1 | h)", "y ~ x + (1 + x | g)")
    assert np.isnan(row["p"]) and "'h'" in row["reference"]
    row = compared(data, "y ~ x + (x | g)", "y ~ x + w + (1 + x || g) + (1 | h)")
    assert np.isnan(row["p"]) and "correlated" in row["reference"]


def test_two_variances_in_closed_form(data):
    """Self & Liang (1987), case 7: weights by the angle between the two axes in the metric of the information."""
    row = compared(data, "y ~ x", "y ~ x + (1 | g) + (1 | h)")
    X = np.column_stack([np.ones(len(data)), data["x"]])
    M = np.eye(len(data)) - X @ np.linalg.solve(X.T @ X, X.T)
    same = [M @ np.equal.outer(*[data[k].to_numpy()] * 2) @ M for k in ("g", "h")]
    I = np.array([[np.sum(a * b) for b in (*same, M)] for a in (*same, M)])
    I = I[:2, :2] - np.outer(I[:2, 2], I[:2, 2]) / I[2, 2]
    both = math.acos(I[0, 1] / np.sqrt(I[0, 0] * I[1, 1])) / (2 * np.pi)
    expected = 0.5 * stats.chi2.sf(row["chisq"], 1) + both * stats.chi2.sf(row["chisq"], 2)
    assert row["p"] == pytest.approx(expected, rel=1e-6)


def test_independent_variances_are_binomial():
    for d in (2, 3, 4):
        weights = stats.binom.pmf(np.arange(d + 1), d, 0.5)
        found = reference(3.0, 1, [1] * d, np.eye(d)).p
        assert found == pytest.approx(weights @ stats.chi2.sf(3.0, 1 + np.arange(d + 1)), rel=0.02)


def test_a_covariance_matrix_against_brute_force():
    """Nearest point of the cone by scipy, for draws of Z; also that a half-line comes out of the same simulation."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(3, 3))
    metric = A @ A.T + 0.2 * np.eye(3)  # of (v11, v21, v22)
    z = np.linalg.solve(np.linalg.cholesky(metric).T, rng.normal(size=(3, 100)))

    def nearest(at):
        off = lambda v: np.array([v[0] ** 2, v[0] * v[1], v[1] ** 2 + v[2] ** 2]) - at
        best = [
            optimize.least_squares(lambda v: np.linalg.cholesky(metric).T @ off(v), s) for s in rng.normal(size=(4, 3))
        ]
        return at @ metric @ at - 2 * min(b.cost for b in best)

    drawn = np.array([nearest(at) for at in z.T])
    for t in (1.0, 3.0):
        share = np.mean(drawn > t)
        assert reference(t, 0, [2], metric).p == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 100))
    assert boundary._simulated(3.0, 2, [1], np.eye(1)) == pytest.approx(reference(3.0, 2, [1]).p, rel=0.02)
    assert reference(0.0, 0, [2], metric).p == 1 and reference(3.0, 0, [2], metric) == reference(3.0, 0, [2], metric)


def test_information_by_random_vectors(monkeypatch):
    rng = np.random.default_rng(2)
    n = 600
    g, h, z = rng.integers(0, 50, n), rng.integers(0, 30, n), rng.normal(size=(2, n))
    X = np.column_stack([np.ones(n), z[1]])
    factor = np.array([[0.7, 0.0], [0.2, 0.5]])
    model = WorkingModel(rng.gamma(3, size=n), X, [(g, z, factor), (h, np.ones((1, n)), np.array([[0.6]]))])
    components = [Component(g, z[0], z[0]), Component(g, z[0], z[1]), Component(h, np.ones(n), np.ones(n))]
    exact = model.information(components)
    monkeypatch.setattr(boundary, "_DENSE", 0)
    found, size = model.information(components), np.sqrt(np.diag(exact))
    np.testing.assert_allclose(found / np.outer(size, size), exact / np.outer(size, size), atol=0.03)


# --- A smaller model at a boundary of its own --------------------------------------------------------------


def lengths(metric, z, free):
    """Squared lengths of projections of z (d, N) onto non-negative numbers, those of `free` any: over active sets."""
    d, whole = len(metric), np.einsum("an,ab,bn->n", z, metric, z)
    best = np.zeros(z.shape[1])
    for mask in range(2**d):
        at = [i for i in range(d) if mask >> i & 1]
        own = metric[np.ix_(at, at)]
        x = np.linalg.solve(own, metric[at] @ z) if at else np.zeros((0, z.shape[1]))
        inside = (x[[k for k, i in enumerate(at) if i not in free]] >= 0).all(0)
        best = np.where(inside, np.maximum(best, np.einsum("an,ab,bn->n", x, own, x)), best)
    assert (best <= whole * (1 + 1e-9)).all()
    return best


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.8])
def test_a_variance_at_zero_beside_the_added_one(correlation):
    """Differences of squared projections, drawn and projected by brute force."""
    metric = np.array([[1.0, correlation], [correlation, 1.0]])  # of the smaller model's variance, and the added one's
    z = np.linalg.solve(np.linalg.cholesky(metric).T, np.random.default_rng(0).normal(size=(2, 200_000)))
    own = np.maximum(metric[:1] @ z, 0)[0] ** 2  # onto the first axis
    drawn = lengths(metric, z, ()) - own
    # An added covariance, free to move, and the variance of the smaller model.
    moving = lengths(metric, z, (0,)) - np.maximum(metric[1:] @ z, 0)[0] ** 2
    for t in (0.5, 3.0):
        found = beside_zeros(t, 0, 0, [Cone([], 1, (1,)), Cone([], 1, ())], metric).p
        assert found == pytest.approx(np.mean(drawn > t), abs=0.012)
        assert beside_zeros(t, 0, 1, [Cone([], 1, (1,))], metric).p == pytest.approx(np.mean(moving > t), abs=0.012)
    if correlation == 0:
        assert found == pytest.approx(0.5 * stats.chi2.sf(3.0, 1), abs=0.005)
    assert beside_zeros(3.0, 2, 0, [Cone([], 1, (1,))], np.eye(1)).p == pytest.approx(stats.chi2.sf(3.0, 2))


def test_a_smaller_model_at_zero():
    """Fixed effects: chi-squared as ever. A variance: the larger of two p-values, that at zero by brute force."""
    g = np.repeat(np.arange(60), 4)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        data = pd.DataFrame({"y": rng.normal(size=240), "x": rng.normal(size=240), "g": g, "h": g // 3})
        smaller = jg.fit("y ~ x + (1 | h)", data)
        row = jg.anova(smaller, jg.fit("y ~ x + (1 | h) + (1 | g)", data)).iloc[1]
        if smaller.convergence.singular and row["chisq"] > 0.2:
            break
    else:
        raise AssertionError("no such data")
    X = np.column_stack([np.ones(240), data["x"]])
    M = np.eye(240) - X @ np.linalg.solve(X.T @ X, X.T)
    same = [M @ np.equal.outer(*[data[k].to_numpy()] * 2) @ M for k in ("h", "g")]
    I = np.array([[np.sum(a * b) for b in (*same, M)] for a in (*same, M)])
    I = I[:2, :2] - np.outer(I[:2, 2], I[:2, 2]) / I[2, 2]
    z = np.linalg.solve(np.linalg.cholesky(I).T, np.random.default_rng(0).normal(size=(2, 100_000)))
    drawn = lengths(I, z, ()) - np.maximum(I[0] @ z, 0) ** 2 / I[0, 0]
    usual, there = 0.5 * stats.chi2.sf(row["chisq"], 1), np.mean(drawn > row["chisq"])
    first, second = (there, usual) if there > 1.1 * usual else (usual, there)
    assert row["p"] == pytest.approx(first, abs=0.015)
    assert "1 variance of the smaller model at zero" in row["reference"]
    told = float(row["reference"].split("the other is p = ")[1].split(" by ")[0])
    assert told == pytest.approx(second, abs=0.015)
    row = compared(data, "y ~ 1 + (1 | h)", "y ~ x + (1 | h)")
    assert row["p"] == pytest.approx(stats.chi2.sf(row["chisq"], 1))
    slopes = compared(data, "y ~ x + (1 | h)", "y ~ x + (1 + x | h)")  # its covariance matrix is zero altogether
    assert 0 < slopes["p"] <= 1 and "of the smaller model at zero" in slopes["reference"]


@pytest.mark.slow
def test_p_values_are_uniform_under_the_smaller_model():
    rng, p = np.random.default_rng(3), []
    g, x = np.repeat(np.arange(60), 6), rng.normal(size=360)
    for y in 1 + x + rng.normal(size=(150, 360)):
        p.append(compared(pd.DataFrame({"y": y, "x": x, "g": g}), "y ~ x", "y ~ x + (x | g)")["p"])
    p = np.array(p)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p < level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 150) + 0.01)
