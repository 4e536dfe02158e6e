"""The trust-region maximiser on functions whose optimum is known."""

import numpy as np
import pytest

from jaxglmm.optimise.newton import maximise


def quadratic(A, centre):
    return lambda x: (-0.5 * (x - centre) @ A @ (x - centre), -A @ (x - centre), -A)


def test_a_quadratic_takes_one_step():
    A = np.array([[4.0, 1.0], [1.0, 3.0]])
    r = maximise(quadratic(A, np.array([1.0, -2.0])), np.zeros(2))
    assert r.converged and r.iterations == 1 and r.decrement < 1e-25
    np.testing.assert_allclose(r.x, [1.0, -2.0])


def rosenbrock(x):
    a, b = 1 - x[0], x[1] - x[0] ** 2
    gradient = np.array([-2 * a - 400 * x[0] * b, 200 * b])
    hessian = np.array([[2 - 400 * b + 800 * x[0] ** 2, -400 * x[0]], [-400 * x[0], 200.0]])
    return -(a**2 + 100 * b**2), -gradient, -hessian


@pytest.mark.parametrize("start", [(-1.2, 1.0), (3.0, -3.0), (0.0, 0.0)])
def test_a_curved_valley(start):
    r = maximise(rosenbrock, np.array(start))
    assert r.converged
    np.testing.assert_allclose(r.x, 1.0, atol=1e-6)


def test_it_leaves_a_saddle():
    """x^2 y-shaped: at the start the Hessian is indefinite."""
    f = lambda x: (
        x[0] ** 2 - x[0] ** 4 - x[1] ** 2,
        np.array([2 * x[0] - 4 * x[0] ** 3, -2 * x[1]]),
        np.diag([2 - 12 * x[0] ** 2, -2.0]),
    )
    r = maximise(f, np.array([1e-3, 0.5]))
    assert r.converged and abs(r.x[0]) == pytest.approx(np.sqrt(0.5), rel=1e-6)


def test_scale_free():
    """The steps are the same when a parameter is measured in other units."""
    scale = np.array([1.0, 1e6])
    scaled = lambda z: (lambda v, g, H: (v, g * scale, H * np.outer(scale, scale)))(*rosenbrock(z * scale))
    plain, other = maximise(rosenbrock, np.array([-1.2, 1.0])), maximise(scaled, np.array([-1.2, 1.0]) / scale)
    assert other.converged and other.iterations == plain.iterations
    np.testing.assert_allclose(other.x * scale, plain.x, rtol=1e-9)


@pytest.mark.parametrize(("score", "expected"), [(-1.0, 0.0), (1.0, np.sqrt(0.5))])
def test_an_even_parameter_reaches_zero_or_leaves_it(score, expected):
    """L = score t^2 - t^4: zero is the optimum when the score in t^2 is negative, and is left when it is positive."""
    f = lambda x: (
        score * x[0] ** 2 - x[0] ** 4,
        np.array([2 * score * x[0] - 4 * x[0] ** 3]),
        np.array([[2 * score - 12 * x[0] ** 2]]),
    )
    for start in (0.02, 0.5, 5.0):
        r = maximise(f, np.array([start]), log_coordinates=np.array([True]))
        assert r.converged
        assert abs(r.x[0]) == pytest.approx(expected, abs=1e-6)
        assert r.iterations < 20


def test_what_is_not_finite_is_told():
    r = maximise(lambda x: (np.nan, x, -np.eye(1)), np.ones(1))
    assert not r.converged and r.reason == "not finite"
    # A step into a region without a value is shortened.
    f = lambda x: (np.log(x[0]) - x[0], 1 / x - 1, -np.diag(1 / x**2)) if x[0] > 0 else (np.nan, x, -np.eye(1))
    r = maximise(f, np.array([3.0]))
    assert r.converged and r.x[0] == pytest.approx(1.0)


def test_the_limit_is_told():
    r = maximise(rosenbrock, np.array([-1.2, 1.0]), max_iterations=3)
    assert not r.converged and r.reason == "limit" and r.iterations == 3


def test_a_sample_foretells_the_end():
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(400_000), rng.standard_normal((400_000, 3))])
    y = rng.random(400_000) < 1 / (1 + np.exp(-X @ [-1.0, 0.5, -0.5, 0.2]))

    def logistic(X, y):
        def at(x):
            eta = X @ x
            mean = 1 / (1 + np.exp(-eta))
            return y @ eta - np.logaddexp(0, eta).sum(), X.T @ (y - mean), -(X.T * (mean * (1 - mean))) @ X

        return at

    whole, part = logistic(X, y), logistic(X[::10], y[::10])
    start = maximise(part, np.zeros(4), tol=1e-6).x
    seen, told = maximise(whole, start), maximise(whole, start, part=part)
    assert told.converged and told.iterations == 1 < seen.iterations
    _, g, H = whole(told.x)
    assert g @ np.linalg.solve(-H, g) < told.decrement <= 1e-12
    assert told.value == pytest.approx(seen.value, rel=1e-14)
    errors, known = (np.sqrt(np.diag(np.linalg.inv(-h))) for h in (told.hessian, H))
    np.testing.assert_allclose(errors, known, rtol=1e-7)
    # A sample of other rows misleads; the answer is the same, from far off by a longer way.
    other = maximise(whole, start + 20 * errors, part=logistic(X[:5000], ~y[:5000]))
    assert other.converged and other.iterations > 1
    np.testing.assert_allclose(other.x, seen.x, atol=1e-8)
    # Nothing is foretold before a correction was seen to be right.
    assert maximise(whole, seen.x + 1e-7, tol=1e-16, part=part, max_iterations=0).reason == "limit"
