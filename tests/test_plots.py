"""Pictures: they are drawn for few and for very many groups, say what they show, and are written as PNG."""

from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm import plots


matplotlib.use("Agg")
PNG = b"\x89PNG\r\n\x1a\n"


def gaussian_fit(levels, tau=0.8, rows=6, seed=1):
    """What the pictures read of a fit of group means, without fitting."""
    rng = np.random.default_rng(seed)
    n = 1 + rng.poisson(rows, levels)
    b = rng.normal(0, tau, levels)
    own = b + rng.normal(size=levels) / np.sqrt(n)
    kept = tau**2 * n / (tau**2 * n + 1)
    mode, sd = kept * own, tau * np.sqrt(1 - kept)
    table = pd.DataFrame(
        {"level": [f"level {i}" for i in range(levels)], "term": "Intercept", "n": n, "estimate": mode, "sd": sd}
    ).assign(mean=mode, sd_mean=sd, lower=mode - 1.96 * sd, upper=mode + 1.96 * sd)
    entry = {"group": "g", "name": "Intercept", "sd": tau, "variance": tau**2, "corr": {}}
    return SimpleNamespace(varcorr=[entry], groups={"g": levels}, ranef=lambda group, interval=None: table), own


@pytest.mark.parametrize("levels", [3, 50, 150, 1000, 200_000])
def test_caterpillar_is_of_bounded_size(levels, tmp_path):
    path = tmp_path / "picture.png"
    fig = plots.caterpillar(gaussian_fit(levels)[0], path=path)
    assert path.read_bytes().startswith(PNG)
    width, height = fig.get_size_inches()
    assert width < 12 and height < 12
    assert f"{levels:,} levels" in fig.axes[0].get_title(loc="left")
    assert sum(len(ax.lines) + len(ax.collections) for ax in fig.axes) < 40


@pytest.mark.parametrize("tau", [0.0, 0.8])
def test_the_intervals_of_a_caterpillar_are_ranefs(tau, tmp_path):
    """At a standard deviation of zero, too, where intervals given the parameters have no length."""
    g = np.repeat(np.arange(20), 5)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        fit = jg.fit("y ~ 1 + (1 | g)", {"y": tau * rng.normal(size=20)[g] + rng.normal(size=100), "g": g})
        if fit.convergence.singular == (tau == 0):
            break
    effects = fit.ranef(interval=0.95)
    order = np.argsort(effects["mean"], kind="stable")
    fit.save(tmp_path / "fit")
    for shown in (fit, jg.load(tmp_path / "fit")):
        ax = plots.caterpillar(shown, path=tmp_path / "a.png").axes[0]
        parts: Any = ax.collections
        drawn = np.concatenate([part.get_segments() for part in parts if len(part.get_segments())])
        drawn = drawn[np.argsort(drawn[:, 0, 1])][:, :, 0]
        np.testing.assert_allclose(drawn, np.stack([effects["lower"], effects["upper"]], 1)[order], atol=1e-9)
        assert (np.diff(drawn) > 0.1).all()


def test_caterpillar_names_and_orders_a_few_levels(tmp_path):
    fit, _ = gaussian_fit(20)
    ax = plots.caterpillar(fit, "g", path=tmp_path / "a.png").axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    table = fit.ranef("g").sort_values("mean")
    assert names == table["level"].tolist()


def test_caterpillar_names_the_ends_of_many_levels(tmp_path):
    fit, _ = gaussian_fit(5000)
    _, top, bottom = plots.caterpillar(fit, path=tmp_path / "a.png").axes
    order = fit.ranef("g").sort_values("mean")["level"].tolist()
    assert [t.get_text() for t in top.get_yticklabels()] == order[-12:]
    assert [t.get_text() for t in bottom.get_yticklabels()] == order[:12]


def test_shrinkage_recovers_the_group_means_of_a_gaussian_model(tmp_path):
    fit, own = gaussian_fit(300)
    ax = plots.shrinkage(fit, path=tmp_path / "a.png").axes[0]
    drawn = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(own), rtol=1e-9)
    assert np.all(np.abs(drawn[:, 1]) <= np.abs(drawn[:, 0]))


def test_shrinkage_of_very_many_levels_is_one_drawing(tmp_path):
    fig = plots.shrinkage(gaussian_fit(100_000)[0], path=tmp_path / "a.png")
    assert len(fig.axes[0].collections) == 1


def test_shrinkage_of_a_singular_fit_says_so():
    fit, _ = gaussian_fit(10)
    fit.varcorr[0]["sd"] = 0.0
    with pytest.raises(jg.DataError, match="'Intercept' by 'g' is zero"):
        plots.shrinkage(fit)


@pytest.mark.parametrize(
    ("arguments", "culprit", "expected"),
    [(("h",), "'h'", r"\['g'\]"), (("g", "Days"), "'Days'", r"\['Intercept'\]")],
)
def test_an_unknown_group_or_term_is_named(arguments, culprit, expected):
    with pytest.raises(jg.DataError, match=expected) as error:
        plots.caterpillar(gaussian_fit(5)[0], *arguments)
    assert culprit in str(error.value)


def rows_fit(n=4000, seed=2):
    rng = np.random.default_rng(seed)
    mu = rng.beta(2, 3, n)
    y = (rng.random(n) < mu).astype(float)
    quantile = rng.normal(size=n)
    residuals = {"response": y - mu, "quantile": quantile}
    return SimpleNamespace(fitted=mu, predict=lambda data=None, effects=None: mu, residuals=residuals.get), mu, y


def test_calibration_shows_the_means_of_the_bins(tmp_path):
    fit, mu, y = rows_fit()
    ax = plots.calibration(fit, path=tmp_path / "a.png").axes[0]
    points = ax.lines[1]  # after the diagonal
    order = np.argsort(mu)
    np.testing.assert_allclose(np.asarray(points.get_xdata()), mu[order].reshape(10, -1).mean(1))
    np.testing.assert_allclose(np.asarray(points.get_ydata()), y[order].reshape(10, -1).mean(1))


def test_calibration_on_new_data_needs_both():
    fit, mu, _ = rows_fit()
    with pytest.raises(jg.DataError, match="`data` and `observed` together"):
        plots.calibration(fit, data={"x": mu})
    with pytest.raises(jg.DataError, match="3 values for 4000 rows"):
        plots.calibration(fit, data={"x": mu}, observed=[1, 0, 1])


def test_qq_of_normal_residuals_lies_in_its_band(tmp_path):
    fit, _, _ = rows_fit()
    ax = plots.qq(fit, path=tmp_path / "a.png").axes[0]
    band = np.asarray(ax.collections[0].get_paths()[0].vertices)
    points = np.asarray(ax.lines[1].get_xydata())
    half = len(band) // 2
    low = np.interp(points[:, 0], band[1:half, 0], band[1:half, 1])
    assert np.mean(points[:, 1] >= low - 1e-9) > 0.9


def test_trace_falls(tmp_path):
    steps = [(-700.0, 50.0), (-630.0, 1.0), (-625.0, 1e-3), (-624.999, 1e-14)]
    fit = SimpleNamespace(convergence=SimpleNamespace(trace=steps))
    ax = plots.trace(fit, path=tmp_path / "a.png").axes[0]
    assert ax.get_yscale() == "log"
    assert np.all(np.diff(ax.lines[0].get_ydata()) < 0)


def test_without_a_path_the_picture_is_pyplots():
    from matplotlib import pyplot

    fig = plots.caterpillar(gaussian_fit(5)[0])
    assert fig.number in pyplot.get_fignums()
    pyplot.close(fig)
