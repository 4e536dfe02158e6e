"""Many fits at once: each is what a fit alone gives, failures stay apart, programs are compiled once."""

import json
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm.design.batch import pack, packed_layout
from jaxglmm.design.groups import SIZES
from jaxglmm.objectives import evaluate_many
from jaxglmm.ops import lanes
from jaxglmm.optimise.batch_newton import maximise_many
from jaxglmm.optimise.newton import maximise


# --- Parts -------------------------------------------------------------------------------------------------


def test_lanes_agree_with_lapack():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 5, 5))
    A = A @ np.swapaxes(A, 1, 2) + 0.1 * np.eye(5)
    last = lanes.lanes_last(A)
    L = lanes.cholesky(last)
    np.testing.assert_allclose(np.moveaxis(L, -1, 0), np.linalg.cholesky(A), rtol=1e-10, atol=1e-12)
    b = rng.normal(size=(20, 5))
    np.testing.assert_allclose(lanes.cho_solve(L, lanes.lanes_last(b)).T, np.linalg.solve(A, b[:, :, None])[:, :, 0])
    np.testing.assert_allclose(np.moveaxis(lanes.inverse(last), -1, 0), np.linalg.inv(A), rtol=1e-8)
    last[:, :, 3] = -last[:, :, 3]
    bad = np.flatnonzero(np.isnan(lanes.cholesky(last)).any((0, 1)))
    assert bad.tolist() == [3]


def test_the_maximiser_goes_the_way_of_the_single_one():
    """Functions with a ridge and an even parameter, whose maximum is at zero for some."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=60), np.exp(rng.normal(size=60))

    def functions(which, x):
        A, B, (x1, x2, x3) = a[which], b[which], x.T
        value = -B * (x2**2 - A) ** 2 - 3 * (x1 - x2**2) ** 2 - np.cosh(x3 - A)
        slope = -4 * B * x2 * (x2**2 - A) + 12 * x2 * (x1 - x2**2)
        H = np.zeros((len(which), 3, 3))
        H[:, 0, 0], H[:, 2, 2] = -6, -np.cosh(x3 - A)
        H[:, 0, 1] = H[:, 1, 0] = 12 * x2
        H[:, 1, 1] = -4 * B * (3 * x2**2 - A) + 12 * x1 - 36 * x2**2
        return value, np.stack([-6 * (x1 - x2**2), slope, -np.sinh(x3 - A)], 1), H

    even = np.array([False, True, False])
    found = maximise_many(functions, np.tile([0.0, 1.0, 0.0], (60, 1)), free=np.ones(3, bool), even=even)
    for i in range(60):
        one = lambda x, i=i: tuple(v[0] for v in functions(np.array([i]), x[None]))
        alone = maximise(one, np.array([0.0, 1.0, 0.0]), log_coordinates=even)
        assert alone.converged == found.converged[i]
        np.testing.assert_allclose(found.value[i], alone.value, atol=1e-10)
    held = maximise_many(functions, np.tile([0.0, 1.0, 0.5], (60, 1)), free=~even, even=even)
    assert held.converged.all() and (held.x[:, 1] == 1).all()
    np.testing.assert_allclose(held.x[:, 0], 1.0, atol=1e-7)


@pytest.mark.parametrize("sizes", [(1,), (7, 5, 5, 2), (33, 9, 3, 3, 1), (200, 64, 40), tuple(range(40, 0, -1))])
def test_every_row_has_a_slot_of_its_own_beside_its_group(sizes):
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    packing, layout = packed_layout(codes, len(sizes))
    assert len(set(layout.slot.tolist())) == len(codes) and layout.slot.max() < packing.n_slots
    np.testing.assert_array_equal(layout.counts, sizes)
    short = packing.n_short * packing.block
    for slot, group in zip(layout.slot, codes, strict=True):
        if slot < short:  # as far from its group's first slot as rows of its block's class are
            across = packing.block // SIZES[packing.kind[slot // packing.block]]
            assert slot // packing.block == layout.first[group] // packing.block
            assert slot % across == layout.first[group] % across
        else:
            assert packing.piece is not None
            run = packing.block // 32
            piece = (slot - short) // packing.block * run + (slot - short) % run
            assert packing.piece[piece] == np.argsort(np.argsort(-np.array(sizes), kind="stable"))[group]
    assert (pack(np.array(sizes)).room >= sizes).all()


# --- Fits --------------------------------------------------------------------------------------------------


N, B, NODES = 240, 24, {"method": "agq", "n_agq": 5}


@pytest.fixture(scope="module")
def data():
    """Rows with binary responses y0, y1, ...; some of these cannot be fitted."""
    rng = np.random.default_rng(3)
    table = {"x": rng.normal(size=N), "z": rng.normal(size=N), "g": rng.integers(0, 24, N)}
    eta = np.stack([np.ones(N), table["x"], table["z"]], 1) @ rng.normal(scale=0.5, size=(3, B))
    eta += (rng.normal(size=(24, B)) * rng.uniform(0, 1.2, B))[table["g"]]
    Y = (rng.random((N, B)) < 1 / (1 + np.exp(-eta))).astype(float)
    Y[5, 3], Y[:, 4], Y[:, 7], Y[2, 9] = np.nan, 1, table["x"] > 0, 3
    return pd.DataFrame(table | {f"y{j}": Y[:, j] for j in range(B)})


NAMES = [f"y{j}" for j in range(B)]


@pytest.fixture(scope="module")
def many(data):
    return jg.fit_many("~ x + z + (1 | g)", data, responses=NAMES, family="binomial", **NODES)


def assert_same(fits, i, alone):
    """Fit i of many against the fit alone."""
    p = len(alone.names)
    np.testing.assert_allclose(fits.estimate[i, :p], list(alone.fixef.values()), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fits.se[i, :p], list(alone.fixef_se.values()), rtol=1e-5)
    assert fits.singular[i] == alone.convergence.singular
    np.testing.assert_allclose(fits.loglik[i], alone.loglik, rtol=1e-10)
    table = alone.confint()
    assert list(table["parameter"]) == list(fits.parameters)
    np.testing.assert_allclose(fits.estimate[i], table["estimate"], rtol=1e-6, atol=2e-6)


def test_each_response_gets_what_a_fit_alone_finds(data, many):
    assert many.singular.any() and not many.singular.all()
    boundary = np.flatnonzero(many.singular)[:2].tolist()
    for i in [0, 1, 12, *boundary]:
        alone = jg.fit(f"{NAMES[i]} ~ x + z + (1 | g)", data, family="binomial", **NODES)
        assert_same(many, i, alone)
        assert many.n_agq[i] == alone.n_agq
    assert (many.decrement[~np.isnan(many.loglik)] <= 1e-12).all()


def test_a_response_that_cannot_be_fitted_is_marked_alone(many):
    reasons = many.failed
    assert set(reasons) == {"y3", "y4", "y7", "y9"}
    for name, words in (("y3", "row 5"), ("y4", "in every row"), ("y7", "separation: 'x'"), ("y9", "found 3")):
        assert words in reasons[name]
        with pytest.raises(jg.DataError, match=f"{name}.*failed"):
            many[name]
    failed = np.isin(many.labels, list(reasons))
    assert np.isnan(many.estimate[failed]).all() and np.isfinite(many.estimate[~failed]).all()


def test_a_full_fit_is_made_of_any(data, many):
    fit = many["y1"]
    assert fit.formula == "y1 ~ x + z + (1 | g)" and fit.loglik == pytest.approx(many.loglik[1], abs=1e-9)
    assert len(fit.ranef("g")) == 24 and len(many) == B
    assert many[1].loglik == fit.loglik and many[-1].formula.startswith(NAMES[-1])
    with pytest.raises(IndexError, match="24 fits"):
        many[24]
    with pytest.raises(KeyError, match="no fit of response 'y99'"):
        many["y99"]


def test_tables(many):
    table, summary = many.table(), many.summary()
    assert list(table.columns) == ["response", "parameter", "estimate", "se"] and len(table) == B * 4
    assert table["parameter"].iloc[3] == "sd[Intercept|g]" and table["response"].iloc[4] == "y1"
    assert list(summary["failed"] != "") == [name in many.failed for name in NAMES]
    assert "4 failed" in repr(many)


def test_the_number_of_nodes_is_found_for_each(data):
    """Large variances take more nodes than small ones."""
    rng = np.random.default_rng(4)
    eta = data["x"].to_numpy()[:, None] + (rng.normal(size=(24, 6)) * np.repeat([0.5, 6.0], 3))[data["g"]]
    Y = (rng.random((N, 6)) < 1 / (1 + np.exp(-eta))).astype(float)
    fits = jg.fit_many("~ x + (1 | g)", data, responses=Y, family="binomial")
    assert fits.n_agq.min() < fits.n_agq.max()
    for i in (0, 3):
        alone = jg.fit("y ~ x + (1 | g)", {"y": Y[:, i], "x": data["x"], "g": data["g"]}, family="binomial")
        assert_same(fits, i, alone)
        assert fits.n_agq[i] == alone.n_agq


@pytest.fixture
def compiled(monkeypatch):
    """Fits by compiled programs, where the library would do."""
    monkeypatch.setattr("jaxglmm.ops.lane_pass.covers", lambda *_: False)


def test_programs_find_what_the_library_does_and_are_compiled_once(data, many, compiled):
    run = lambda: jg.fit_many("~ x + z + (1 | g)", data, responses=NAMES, family="binomial", **NODES)
    first = run()
    programs = [evaluate_many._evaluate_many, evaluate_many.evaluate_glm_many, evaluate_many.group_spread_many]
    before = [p.jitted._cache_size() for p in programs]
    assert all(before)
    again = run()
    assert [p.jitted._cache_size() for p in programs] == before
    np.testing.assert_array_equal(again.estimate, first.estimate)
    np.testing.assert_allclose(first.estimate, many.estimate, rtol=1e-6, atol=2e-6)
    assert first.failed == many.failed and (first.singular == many.singular).all()


def test_a_run_that_was_cut_off_goes_on(data, many, tmp_path, monkeypatch):
    for name in ("lanes_at_once", "natively_at_once"):
        monkeypatch.setattr(f"jaxglmm.batching.responses.{name}", lambda _: 8)
    run = lambda **options: jg.fit_many(
        "~ x + z + (1 | g)", data, responses=NAMES, family="binomial", out=tmp_path, **NODES, **options
    )
    done = run()
    parts = sorted(tmp_path.glob("part-*.parquet"))
    assert len(parts) == 3
    written = pd.concat([pd.read_parquet(path) for path in parts])
    np.testing.assert_array_equal(written["estimate[x]"], done.estimate[:, 1])
    assert list(written["response"]) == NAMES and int(written["failed"].notna().to_numpy().sum()) == 4
    parts[1].unlink()
    half = parts[2].with_name(".new-77-part-00002.parquet")
    half.write_bytes(b"half")
    times = [path.stat().st_mtime_ns for path in (parts[0], parts[2])]
    again = run()
    assert not half.exists()
    assert parts[1].exists() and times == [path.stat().st_mtime_ns for path in (parts[0], parts[2])]
    np.testing.assert_array_equal(again.estimate, done.estimate)
    np.testing.assert_allclose(done.estimate, many.estimate, rtol=1e-6, atol=1e-6)
    assert again.failed == done.failed
    with pytest.raises(jg.DataError, match="options differ"):
        run(tol=1e-9)
    assert json.loads((tmp_path / "batch.json").read_text())["by"] == "response"


KILLED = """
import sys, time
import numpy as np
import jaxglmm as jg
from jaxglmm.batching import gaussian, parts
gaussian._MOST = 8
save = parts.Parts.save
def slow(*arguments):
    save(*arguments)
    time.sleep(float(sys.argv[2]))
parts.Parts.save = slow
rng = np.random.default_rng(0)
g = np.repeat(np.arange(15), 6)
Y = rng.normal(size=(90, 400)) + rng.normal(size=(15, 400))[g]
Y[3, 11] = np.nan
jg.fit_many("~ x + (1 | g)", {"x": rng.normal(size=90), "g": g}, responses=Y, out=sys.argv[1], progress=False)
"""


def test_a_run_that_was_killed_goes_on(tmp_path):
    """By SIGKILL, between parts and within them; the same table as of a run that nothing disturbed."""
    command = lambda folder, wait: [sys.executable, "-c", KILLED, str(tmp_path / folder), str(wait)]
    subprocess.run(command("whole", 0), check=True)
    process = subprocess.Popen(command("killed", 0.05))
    written = lambda: sorted((tmp_path / "killed").glob("part-*.parquet"))
    while len(written()) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in written()}
    assert 5 <= len(before) < 50
    subprocess.run(command("killed", 0), check=True)
    table = lambda folder: pd.concat([pd.read_parquet(p) for p in sorted((tmp_path / folder).glob("*.parquet"))])
    tables = table("whole"), table("killed")
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 400 and int(tables[0]["failed"].notna().to_numpy().sum()) == 1
    again = [path for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert len(again) <= 1  # that whose digest was not yet written


def test_progress_tells_rate_and_time_left(data, capsys):
    jg.fit_many("~ x", data, responses=["y0", "y1"], family="binomial", progress=True)
    assert "2 of 2 fits" in (err := capsys.readouterr().err) and "a second, 0 s left" in err


def test_without_random_effects(data):
    fits = jg.fit_many("~ x + z", data, responses=NAMES[:9], family="binomial")
    assert set(fits.failed) == {"y3", "y4", "y7"}
    assert_same(fits, 0, jg.fit("y0 ~ x + z", data, family="binomial"))


def test_counts_with_a_dispersion():
    rng = np.random.default_rng(5)
    x, g = rng.normal(size=N), rng.integers(0, 24, N)
    mu = np.exp(0.5 + 0.3 * x[:, None] + (0.5 * rng.normal(size=(24, 3)))[g])
    Y = rng.negative_binomial(2.0, 2.0 / (2.0 + mu))
    fits = jg.fit_many("~ x + (1 | g)", {"x": x, "g": g}, responses=Y, family="negativebinomial", method="laplace")
    alone = jg.fit("y ~ x + (1 | g)", {"y": Y[:, 0], "x": x, "g": g}, family="negativebinomial", method="laplace")
    assert fits.parameters[-1] == "theta"
    assert_same(fits, 0, alone)


def test_two_effects_a_group(data):
    fits = jg.fit_many("~ x + (1 + x | g)", data, responses=["y0", "y1"], family="binomial", method="laplace")
    for i in range(2):
        alone = jg.fit(f"y{i} ~ x + (1 + x | g)", data, family="binomial", method="laplace", throw=False)
        assert_same(fits, i, alone)


def test_what_concerns_all_fits_is_an_error(data):
    with pytest.raises(jg.DataError, match="empty left side"):
        jg.fit_many("y0 ~ x + (1 | g)", data, responses=NAMES)
    with pytest.raises(jg.DataError, match="y99"):
        jg.fit_many("~ x + (1 | g)", data, responses=["y99"])
    with pytest.raises(jg.DataError, match="twice"):
        jg.fit_many("~ x + (1 | g)", data, responses=["y0", "y0"])
    with pytest.raises(jg.NotYetError, match="2 grouping factors"):
        jg.fit_many("~ x + (1 | g) + (1 | z)", data, responses=["y0"])
    with pytest.raises(jg.DataError, match="shape"):
        jg.fit_many("~ x", data, responses=np.zeros(N))
    with pytest.raises(jg.DataError, match="response"):
        jg.fit_each("~ x", data, by="g")
    with pytest.raises(jg.DataError, match="'h'"):
        jg.fit_each("y0 ~ x", data, by="h")


# --- Strata ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strata():
    """24 strata of 60 to 180 rows; some of these cannot be fitted."""
    rng = np.random.default_rng(6)
    s = np.repeat(np.arange(24), rng.integers(60, 180, 24))
    n = len(s)
    g, x, z = rng.integers(0, 12, n), rng.normal(size=n), rng.normal(size=n)
    eta = 0.3 * x - 0.2 * z + (rng.normal(size=(24, 12)) * rng.uniform(0, 1.5, (24, 1)))[s, g]
    y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float)
    y[s == 3], g[s == 4], x[np.flatnonzero(s == 6)[3]], z[s == 7] = 1, 5, np.nan, 1.0
    z[s == 8], y[s == 9], y[np.flatnonzero(s == 11)[0]] = 2 * x[s == 8], x[s == 9] > 0, 2.0
    order = rng.permutation(n)
    return pd.DataFrame({"y": y, "x": x, "z": z, "g": g, "s": [f"s{k:02d}" for k in s]}).iloc[order]


@pytest.fixture(scope="module")
def each(strata):
    return jg.fit_each("y ~ x + z + (1 | g)", strata, by="s", family="binomial", **NODES)


def test_each_stratum_gets_what_a_fit_alone_finds(strata, each):
    assert list(each.labels) == [f"s{k:02d}" for k in range(24)]
    for i in (0, 1, 12, int(np.flatnonzero(each.singular)[0])):
        part = strata[strata["s"] == each.labels[i]]
        alone = jg.fit("y ~ x + z + (1 | g)", part, family="binomial", **NODES)
        assert_same(each, i, alone)
        assert each.n[i] == alone.n and each.groups[i] == alone.groups["g"]
    fit = each["s12"]
    assert fit.n == each.n[12] and len(fit.ranef("g")) == each.groups[12]
    np.testing.assert_allclose(fit.loglik, each.loglik[12], rtol=1e-10)


def test_a_stratum_that_cannot_be_fitted_is_marked_alone(each):
    words = {
        "s03": "in every row", "s04": "one level only", "s06": "missing value", "s07": "constant",
        "s08": "same information", "s09": "separation", "s11": "found 2",
    }  # fmt: skip
    assert set(each.failed) == set(words)
    for label, text in words.items():
        assert text in each.failed[label], each.failed[label]


def test_strata_of_like_size_use_the_same_programs(strata, each, compiled):
    run = lambda data: jg.fit_each("y ~ x + z + (1 | g)", data, by="s", family="binomial", **NODES)
    first = run(strata)
    before = evaluate_many._evaluate_many.jitted._cache_size()
    other = run(strata.assign(z=3 + 2 * strata["z"]))
    assert evaluate_many._evaluate_many.jitted._cache_size() == before > 0
    np.testing.assert_allclose(first.estimate, each.estimate, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(2 * other.estimate[:, 2], each.estimate[:, 2], rtol=1e-6, atol=1e-9)


# --- Gaussian ----------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("formula", ["~ Days + (1 | Subject)", "~ Days + (Days | Subject)", "~ Days"])
@pytest.mark.parametrize("reml", [False, True])
def test_gaussian_responses_on_one_design(reference_dir, formula, reml):
    data = pd.read_csv(reference_dir / "sleepstudy.csv")
    noise = np.random.default_rng(0).normal(size=(180, 11)) * np.linspace(0, 60, 11)
    Y = data["Reaction"].to_numpy()[:, None] + noise
    Y[:, 9] = data["Days"]
    fits = jg.fit_many(formula, data, responses=Y, reml=reml)
    assert set(fits.failed) == {9} and "perfectly" in fits.failed[9]
    for i in (0, 1, 4, 8, 10):
        alone = jg.fit("y" + formula, data.assign(y=Y[:, i]), reml=reml)
        table = alone.confint()
        assert list(fits.parameters) == list(table["parameter"]) and fits.singular[i] == alone.convergence.singular
        np.testing.assert_allclose(fits.estimate[i], table["estimate"], rtol=1e-9)
        np.testing.assert_allclose(fits.se[i, :2], list(alone.fixef_se.values()), rtol=1e-8)
        np.testing.assert_allclose(fits.loglik[i], alone.loglik, rtol=1e-11)
    if "|" in formula:  # lme4's
        name = ("slope" if "Days |" in formula else "intercept") + ("_lmer_reml" if reml else "_lmer_ml")
        stored = json.loads((reference_dir / "sleepstudy.json").read_text())["fits"]
        wanted = next(f for f in stored if f["id"] == name)
        np.testing.assert_allclose(fits.estimate[0, :2], wanted["fixef"]["estimate"], rtol=1e-6)
        np.testing.assert_allclose(fits.loglik[0], wanted["logLik"], rtol=1e-8)


@pytest.mark.parametrize("formula", ["y ~ x + (1 | g)", "y ~ x + (x | g)", "y ~ x"])
def test_gaussian_strata(formula):
    rng = np.random.default_rng(1)
    s = np.repeat(np.arange(20), rng.integers(50, 110, 20))
    n = len(s)
    x, g, w = rng.normal(size=n), rng.integers(0, 10, n), rng.uniform(0.5, 2, n)
    slopes = rng.normal(size=(20, 10)) * 0.7 * (np.arange(20)[:, None] % 2)
    y = x * (1 + slopes[s, g]) + (rng.normal(size=(20, 10)) * rng.uniform(0, 1, (20, 1)))[s, g] + rng.normal(size=n)
    y[s == 3] = 2 * x[s == 3] - 1
    data = pd.DataFrame({"y": y, "x": x, "g": g, "w": w, "s": s})
    fits = jg.fit_each(formula, data, by="s", weights="w")
    assert set(fits.failed) == {3}
    for i in [0, 1, 9, *np.flatnonzero(fits.singular)[:1]]:
        alone = jg.fit(formula, data[data["s"] == i], weights="w")
        np.testing.assert_allclose(fits.estimate[i], alone.confint()["estimate"], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(fits.se[i, :2], list(alone.fixef_se.values()), rtol=1e-8)
        np.testing.assert_allclose(fits.loglik[i], alone.loglik, rtol=1e-10)
        assert fits.singular[i] == alone.convergence.singular


@pytest.mark.parametrize(("family", "response"), [("gaussian", "y"), ("binomial", "b")])
def test_empty_cells_of_a_stratum_leave_out_columns_there(family, response):
    """In B a cell of the interaction is empty, in C a level: as `fit` of their rows alone, with the table's levels."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"s": rng.choice(list("ABC"), 600), "f": rng.choice(list("abc"), 600)})
    data["k"], data["g"], data["x"] = rng.choice(["u", "v"], 600), rng.integers(0, 20, 600), rng.normal(size=600)
    data["y"] = data["x"] + (data["f"] == "b") + rng.normal(size=20)[data["g"]] + rng.normal(size=600)
    data["b"] = 1.0 * (data["y"] > 0)
    empty = ((data["s"] == "B") & (data["f"] == "c") & (data["k"] == "v")) | ((data["s"] == "C") & (data["f"] == "b"))
    data, formula = data[~empty], f"{response} ~ x + f * k + (1 | g)"
    with pytest.warns(
        jg.DataWarning, match=r"rank deficient in 2 of 3 fits by 's'.*of s 'B' these are 'f\[T.c\]:k\[T.v\]'"
    ):
        fits = jg.fit_each(formula, data, by="s", family=family)
    assert fits.failed == {}
    assert fits.dropped == {"B": ("f[T.c]:k[T.v]",), "C": ("f[T.b]", "f[T.b]:k[T.v]")}
    for i, stratum in enumerate("AB"):
        rows = data[data["s"] == stratum]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jg.DataWarning)
            alone = jg.fit(formula, rows, family=family, levels={"f": list("abc"), "k": ["u", "v"]})
        assert fits.loglik[i] == pytest.approx(alone.loglik, abs=1e-9)
        wanted = [alone.fixef.get(name, np.nan) for name in fits.parameters[:7]]
        np.testing.assert_allclose(fits.estimate[i, :7], wanted, rtol=1e-8)
        assert fits[stratum].dropped == alone.dropped == fits.dropped.get(stratum, ())
    rows = data[data["s"] == "C"]
    alone = jg.fit(formula, rows, family=family)  # of the levels that it has, the reference is the same
    assert fits.loglik[2] == pytest.approx(alone.loglik, abs=1e-9)
    assert fits[2].loglik == pytest.approx(alone.loglik, abs=1e-9)


def test_a_number_that_is_constant_in_a_stratum_is_refused_there():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"s": np.arange(60) % 2, "x": rng.normal(size=60), "y": rng.normal(size=60)})
    data.loc[data["s"] == 1, "x"] = 3.0
    fits = jg.fit_each("y ~ x", data, by="s")
    assert list(fits.failed) == [1] and "constant" in fits.failed[1]
    assert fits.dropped == {}
