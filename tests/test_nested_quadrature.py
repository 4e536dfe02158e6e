"""Members inside hospitals, three binary rows each: quadrature over members against brute-force integration."""

import numpy as np
import pytest

import jaxglmm as jg


MEMBERS, HOSPITALS = 150, 12


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    member = np.repeat(np.arange(MEMBERS), 3)
    hospital = (np.arange(MEMBERS) % HOSPITALS)[member]
    x = rng.standard_normal(len(member))
    eta = -0.3 + 0.5 * x + 1.2 * rng.standard_normal(MEMBERS)[member] + 0.7 * rng.standard_normal(HOSPITALS)[hospital]
    y = (rng.random(len(member)) < 1 / (1 + np.exp(-eta))).astype(int)
    return {"y": y, "x": x, "member": member, "hospital": hospital}


@pytest.fixture(scope="module")
def fits(data):
    fit = lambda **options: jg.fit("y ~ x + (1 | hospital/member)", data, family="binomial", **options)
    return fit(method="agq", n_agq=25), fit(method="laplace")


@pytest.fixture(scope="module")
def brute(data):
    """log-densities of each hospital's rows given its standardised effect: (nodes,) -> (HOSPITALS, nodes)."""
    z, weights = np.polynomial.hermite.hermgauss(80)
    log_weights = np.log(weights / np.sqrt(np.pi))

    def hospitals(fit, effects):
        sd = {row["group"]: row["sd"] for row in fit.varcorr}
        fixed = fit.fixef["Intercept"] + fit.fixef["x"] * data["x"]
        eta = fixed[:, None, None] + sd["hospital:member"] * np.sqrt(2) * z[:, None] + sd["hospital"] * effects
        rows = -np.log1p(np.exp(-(2 * data["y"] - 1)[:, None, None] * eta))
        members = np.logaddexp.reduce(rows.reshape(MEMBERS, 3, *eta.shape[1:]).sum(1) + log_weights[:, None], axis=1)
        return np.stack([members[h::HOSPITALS].sum(0) for h in range(HOSPITALS)])

    return hospitals


def integrated(hospitals, fit):
    """Both levels integrated: 60 nodes for members' effects, a fine grid for hospitals'."""
    grid = np.linspace(-8, 8, 321)
    log_prior = -0.5 * grid**2 - 0.5 * np.log(2 * np.pi) + np.log(grid[1] - grid[0])
    return np.logaddexp.reduce(hospitals(fit, grid) + log_prior, axis=1).sum()


def test_the_value_is_quadrature_inside_and_laplace_outside(fits, brute):
    agq, _ = fits
    step, value = 1e-3, 0.0
    grid = np.linspace(-4, 4, 801)
    density = brute(agq, grid) - 0.5 * grid**2
    for h in range(HOSPITALS):
        mode = grid[np.argmax(density[h])]
        for _ in range(4):  # Newton's method by differences
            near = mode + step * np.array([-1, 0, 1])
            low, mid, high = brute(agq, near)[h] - 0.5 * near**2
            curvature = (high - 2 * mid + low) / step**2
            mode -= (high - low) / (2 * step) / curvature
        value += mid - 0.5 * np.log(-curvature)
    assert agq.loglik == pytest.approx(value, abs=1e-4)


def test_it_is_close_to_two_level_integration_where_laplace_is_not(fits, brute):
    agq, laplace = fits
    truth = integrated(brute, agq)
    assert agq.loglik == pytest.approx(truth, abs=0.02)
    assert agq.convergence.gap == pytest.approx(agq.loglik - (truth - 2.55), abs=0.05)
    assert abs(laplace.loglik - integrated(brute, laplace)) > 1
    # The estimate is the optimum of what was integrated, nearly: Laplace's is not.
    assert truth > integrated(brute, laplace) + 0.2
    assert (agq.method, agq.n_agq) == ("agq", 25)


def test_laplace_says_how_far_off_it_is(fits, brute, data):
    agq, laplace = fits
    (text,) = laplace.convergence.warnings
    assert "log_sd[Intercept|hospital:member] up" in text and "method='agq'" in text and text in str(laplace.summary())
    assert laplace.loglik + laplace.convergence.gap == pytest.approx(integrated(brute, laplace), abs=0.02)
    assert not agq.convergence.warnings
    default = jg.fit("y ~ x + (1 | hospital/member)", data, family="binomial")
    assert default.method == "agq" and default.loglik == pytest.approx(agq.loglik, abs=1e-3)


def rare(seed=3):
    """The case of 2,000 members of 10 rows in 50 hospitals, where one row in a thousand has an event."""
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(2000), 10)
    hospital, x = member % 50, rng.standard_normal(20_000)
    eta = -8 + 0.5 * x + rng.standard_normal(2000)[member] + 0.5 * rng.standard_normal(50)[hospital]
    y = (rng.random(len(member)) < 1 / (1 + np.exp(-eta))).astype(int)
    return {"y": y, "x": x, "member": member, "hospital": hospital}


def test_rare_events_in_nested_groups():
    """Laplace's approximation has a maximum at a standard deviation near 9 that the integral knows nothing of."""
    data = rare()
    fit = lambda **options: jg.fit("y ~ x + (1 | hospital/member)", data, family="binomial", **options)
    laplace, default, asked = fit(method="laplace"), fit(), fit(method="agq", n_agq=25)
    sd = lambda fit: next(row["sd"] for row in fit.varcorr if row["group"] == "hospital:member")
    assert sd(laplace) > 5 and (laplace.convergence.gap or 0.0) < -100
    (text,) = laplace.convergence.warnings
    assert "lower" in text and "log_sd[Intercept|hospital:member] down" in text
    assert sd(default) < 3 and default.method == "agq"
    # Of members nothing is left, and the 15 events in 50 hospitals are few for Laplace's approximation over these: as
    # the fit of hospitals alone has it.
    (text,) = default.convergence.warnings
    (hospitals,) = (row["sd"] for row in default.varcorr if row["group"] == "hospital")
    call = {"family": "binomial", "method": "laplace", "theta": {"hospital": hospitals}}
    alone = jg.fit("y ~ x + (1 | hospital)", data, **call).convergence
    assert "effect of 'hospital', each" in text and f"is {abs(alone.gap or 0.0):.3g} lower" in text
    assert asked.loglik == pytest.approx(default.loglik, abs=1e-3)


def test_nodes_climb_where_effects_are_wide():
    rng = np.random.default_rng(4)
    member = np.repeat(np.arange(300), 3)
    hospital, x = member % 12, rng.standard_normal(900)
    eta = 1 + x + 8 * rng.standard_normal(300)[member] + rng.standard_normal(12)[hospital]
    data = {"y": (rng.random(900) < 1 / (1 + np.exp(-eta))).astype(int), "x": x, "member": member, "hospital": hospital}
    fit = lambda **options: jg.fit("y ~ x + (1 | hospital/member)", data, family="binomial", method="agq", **options)
    climbed, few, many = fit(), fit(n_agq=9), fit(n_agq=301)
    assert (climbed.n_agq or 0) > 39 and climbed.loglik == pytest.approx(many.loglik, abs=2e-3)
    assert not climbed.convergence.warnings and not many.convergence.warnings
    (text,) = few.convergence.warnings
    assert text.startswith("9 nodes are not enough: with 19 nodes") and few.loglik < many.loglik - 1


def test_standard_errors_are_those_of_the_value(data, fits):
    """The curvature in log sd, from fits in which it is held to each side."""
    agq, _ = fits
    sd = {row["group"]: row["sd"] for row in agq.varcorr}
    names = list(agq.state.estimate.parameters)
    covariance = agq.state.estimate.covariance
    inside = [names.index(f"log_sd[Intercept|{group}]") for group in sd]
    information = np.linalg.inv(covariance[np.ix_(inside, inside)])
    step = 0.1
    at = lambda sign: jg.fit(
        "y ~ x + (1 | hospital/member)", data, family="binomial", method="agq", n_agq=25,
        theta={"hospital": sd["hospital"], "hospital:member": sd["hospital:member"] * np.exp(sign * step)},
    ).loglik  # fmt: skip
    curvature = (at(1) - 2 * agq.loglik + at(-1)) / step**2
    assert -curvature == pytest.approx(information[1, 1], rel=0.03)
