"""Ranks against their definition by all pairs of groups."""

import numpy as np
import pandas as pd
import pytest
from fitted_models import members
from scipy.stats import norm

import jaxglmm as jg
from jaxglmm.fitted.history import History, Prior, nodes_for, posteriors
from jaxglmm.fitted.ranking import Piece, normal_pieces, rank_groups
from jaxglmm.model.families import get_family


TAU, CUT = 0.9, 0.5


def by_pairs(densities):
    """P(b_j > b_k) of all pairs by the trapezoid rule, from densities (m, grid) that add to 1."""
    F = np.cumsum(densities, 1) - 0.5 * densities
    P = densities @ F.T
    np.fill_diagonal(P, 0.0)
    return P, F


@pytest.fixture(scope="module")
def binary():
    """2,000 groups of binary rows, one in fifty of them with hundreds: pieces of posteriors and densities on a grid."""
    rng = np.random.default_rng(1)
    m = 2000
    n = np.where(rng.random(m) < 0.02, rng.integers(100, 300, m), rng.integers(1, 9, m))
    codes = np.repeat(np.arange(m), n)
    eta = -0.5 + 0.3 * rng.integers(-1, 2, m)[codes]  # the same in all rows of a group, so that counts suffice below
    y = (rng.random(len(codes)) < 1 / (1 + np.exp(-eta - TAU * rng.normal(size=m)[codes]))) * 1.0
    history = History(codes, y, np.ones(len(y)), eta, np.ones((1, len(y))), m)
    family, prior = get_family("binomial"), Prior(np.zeros(1), np.array([[TAU]]))
    nodes = nodes_for(family, prior, history, wide=6.0)
    pieces = [
        Piece(groups, p.mean[0], np.sqrt(p.covariance[0, 0]), p.first, p.step, p.weights)
        for groups, p in posteriors(family, 0.0, history, prior, nodes, keep=True)
    ]
    b = np.arange(-6400, 6401) * 1e-3
    at, k = np.zeros(m), np.bincount(codes, y, m)
    at[codes] = eta
    f = -k[:, None] * np.logaddexp(0, -at[:, None] - b) - (n - k)[:, None] * np.logaddexp(0, at[:, None] + b)
    f += norm.logpdf(b, 0, TAU)
    density = np.exp(f - f.max(1, keepdims=True))
    return pieces, b, density / density.sum(1, keepdims=True)


def test_ranks_are_those_of_all_pairs(binary):
    pieces, b, density = binary
    m = len(density)
    found = rank_groups(lambda: pieces, m, alpha=0.1, threshold=CUT, r_values=True)
    P, F = by_pairs(density)
    rank = 1 + P.sum(1)
    np.testing.assert_allclose(found.rank / m, rank / m, atol=1e-6)
    np.testing.assert_allclose(found.percentile / 100, (rank - 0.5) / m, atol=1e-6)
    np.testing.assert_allclose(found.mean, density @ b, atol=1e-8)
    at = np.searchsorted(b, CUT - 1e-9)  # a point of the grid: F is the trapezoid rule's there
    assert found.p_above is not None
    np.testing.assert_allclose(found.p_above, 1 - F[:, at], atol=1e-6)
    # The top tenth lies beyond c with F(c) = 0.9: between two points of the grid, where F is a cubic.
    pooled = F.mean(0)
    i = np.searchsorted(pooled, 0.9)
    near = slice(i - 2, i + 2)
    c = np.polyval(np.polyfit(pooled[near] - 0.9, b[near], 3), 0.0)
    top = [1 - np.polyval(np.polyfit(b[near] - c, F[j, near], 3), 0.0) for j in range(m)]
    np.testing.assert_allclose(found.p_top, top, atol=1e-6)
    # Intervals of the percentile: F at the group's quantiles.
    for j in range(0, m, 97):
        ends = [100 * np.interp(np.interp(q, F[j], b), b, pooled) for q in (0.025, 0.975)]
        np.testing.assert_allclose([found.lower[j], found.upper[j]], ends, atol=1e-3)


def test_r_values_place_the_share_they_name(binary):
    """{r <= alpha} holds a share alpha of the groups, those of the largest P(top alpha) (Henderson & Newton 2016)."""
    pieces, _, density = binary
    m = len(density)
    found = rank_groups(lambda: pieces, m, alpha=0.09, r_values=True)
    assert found.r_value is not None
    placed = found.r_value <= 0.09  # a value of the grid of alphas
    assert placed.mean() == pytest.approx(0.09, abs=2 / m)
    assert found.p_top[placed].min() >= found.p_top[~placed].max() - 1e-9
    for alpha in (0.01, 0.3, 0.7):
        assert np.mean(found.r_value <= alpha) == pytest.approx(alpha, abs=0.01)


@pytest.mark.parametrize("m", [1, 2, 7, 40, 100, 101, 2500])
def test_r_values_begin_at_one_group(m):
    """By the definition at alpha = k/m: {r <= k/m} are the k groups with the largest P(top k/m)."""
    rng = np.random.default_rng(m)
    mean, sd = rng.normal(size=m), rng.uniform(0.2, 1.5, m)
    found = rank_groups(lambda: normal_pieces(mean, sd), m, alpha=0.5, r_values=True)
    assert found.r_value is not None
    assert found.r_value.min() >= 1 / m - 1e-12 and found.r_value.max() <= 1
    if m <= 100:
        for k in range(1, m):
            placed = np.flatnonzero(found.r_value <= k / m + 1e-12)
            top = rank_groups(lambda: normal_pieces(mean, sd), m, alpha=k / m).p_top
            assert set(np.argsort(-top)[:k]) <= set(placed)
        assert len(placed) if m > 1 else found.r_value[0] == 1
    else:
        assert np.sum(found.r_value <= 1 / m + 1e-12) == 1


def test_ranks_where_the_standard_deviation_is_zero():
    """Those of the posteriors over tau that `sd_eb` describes: P(b_j > b_k) of normal posteriors in closed form."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(20), rng.integers(2, 9, 20))
    fit = next(
        fit
        for fit in (jg.fit("y ~ 1 + (1 | g)", {"y": rng.normal(size=len(g)), "g": g}) for _ in range(20))
        if fit.convergence.singular
    )
    effects = fit.ranef()
    state = fit._effects(0)
    mean, sd = state.mean_eb[:, 0], np.asarray(effects["sd_eb"])
    P = norm.cdf((mean[:, None] - mean) / np.hypot(sd[:, None], sd))
    np.fill_diagonal(P, 0.0)
    table = fit.rank(r_values=True)
    at = np.searchsorted(effects["level"], table["level"])
    np.testing.assert_allclose(table["rank"], (1 + P.sum(1))[at], atol=1e-5)
    assert (table["r_value"] >= 0.05 - 1e-12).all()
    held = jg.fit("y ~ 1 + (1 | g)", {"y": rng.normal(size=len(g)), "g": g}, theta={"g": 0.0})
    with pytest.raises(jg.DataError, match="nothing to rank"):
        held.rank()


def test_normal_posteriors_of_any_width():
    """Closed form: P(b_j > b_k) = Phi((m_j - m_k)/sqrt(v_j + v_k)); widths from a thousandth to three."""
    rng = np.random.default_rng(2)
    mean, sd = rng.normal(size=300), 10.0 ** rng.uniform(-3, 0.5, 300)
    found = rank_groups(lambda: normal_pieces(mean, sd, most=77), 300, alpha=0.2)
    P = norm.cdf((mean[:, None] - mean) / np.hypot(sd[:, None], sd))
    np.fill_diagonal(P, 0.0)
    np.testing.assert_allclose(found.rank, 1 + P.sum(1), atol=1e-6 * 300)
    np.testing.assert_allclose(found.sd, sd, rtol=1e-6)
    assert found.p_top.sum() == pytest.approx(0.2 * 300, rel=1e-4)


def test_posteriors_too_narrow_for_a_lattice_are_points():
    mean, sd = np.array([0.0, 1e-8, 1.0, 2.0]), np.array([1e-9, 1e-9, 1.0, 1e-9])
    found = rank_groups(lambda: normal_pieces(mean, sd), 4, alpha=0.25)
    # The first two cannot be told apart at the finest lattice; the last is above the third by Phi(1).
    expected = [1.5 + norm.cdf(-1), 1.5 + norm.cdf(-1), 2 * norm.cdf(1) + norm.cdf(-1) + 1, 3 + norm.cdf(1)]
    np.testing.assert_allclose(found.rank, expected, atol=0.01)


def test_the_table():
    fit = members()
    table = fit.rank("member", threshold=0.5, r_values=True)
    effects = fit.ranef().set_index("level")
    assert table["position"].tolist() == list(range(1, 41))
    assert (np.diff(table["rank"]) <= 0).all()
    np.testing.assert_allclose(table["mean"], effects["mean"][table["level"]], atol=1e-7)
    np.testing.assert_allclose(table["percentile"], 100 * (table["rank"] - 0.5) / 40, rtol=1e-12)
    assert ((table["percentile_lower"] < table["percentile"]) & (table["percentile"] < table["percentile_upper"])).all()
    assert table["rank"].sum() == pytest.approx(40 * 41 / 2, rel=1e-9)
    best = fit.rank(top=0.25, order="top")
    assert len(best) == 10 and (np.diff(best["p_top"]) <= 0).all()
    wanted = fit.rank(alpha=0.25).nlargest(10, "p_top")
    assert set(best["level"]) == set(wanted["level"])
    for order, column, sign in (("mean", "mean", -1), ("threshold", "p_above", -1), ("r_value", "r_value", 1)):
        values = fit.rank(order=order, threshold=0.5, top=7)[column]
        assert len(values) == 7 and (sign * np.diff(values) >= 0).all()


def test_bad_options_are_named():
    fit = members()
    for options, message in (
        ({"order": "best"}, r"order must be one of 'rank', 'top'.*'best'"),
        ({"order": "threshold"}, r"needs threshold="),
        ({"top": 1.5}, r"top must be a share within \(0, 1\) or a whole number.*1\.5"),
        ({"alpha": 0.0}, r"alpha must be a level within"),
        ({"term": "x"}, r"term must be one of 'Intercept'; found 'x'"),
        ({"group": "memeber"}, r"no grouping factor 'memeber'"),
    ):
        with pytest.raises(jg.DataError, match=message):
            fit.rank(**options)


def test_a_saved_fit_ranks_the_rows_it_is_given(tmp_path):
    from fitted_models import visits

    fit = members()
    fit.save(tmp_path / "fit")
    loaded = jg.load(tmp_path / "fit")
    with pytest.raises(jg.DataError, match=r"rank.*data=.*rows=True"):
        loaded.rank()
    data = visits().dropna()
    pd.testing.assert_frame_equal(loaded.rank(data=data), fit.rank(), rtol=1e-9)


def test_the_command_line_ranks(tmp_path):
    from fitted_models import visits

    from jaxglmm.cli import main

    members().save(tmp_path / "fit")
    visits().dropna().to_csv(tmp_path / "rows.csv", index=False)
    arguments = ["rank", str(tmp_path / "fit"), str(tmp_path / "rows.csv"), "--top", "5", "--r-values"]
    assert main([*arguments, "--out", str(tmp_path / "best.csv")]) == 0
    table, expected = pd.read_csv(tmp_path / "best.csv"), members().rank(top=5, r_values=True)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-9)
    assert main([*arguments, "--alpha", "2", "--out", str(tmp_path / "best.csv")]) == 2
