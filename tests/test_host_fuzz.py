"""Every native function for the caller's arrays, given arguments that do not fit: an error, never a crash.

Each has a call that is in order, and changes of one argument at a time: lengths, codes and places out of range,
pointers that fall, and values that are not numbers.
"""

import contextlib
import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.gaussian_lanes import LaneProducts
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.ops import codes, gaussian_lanes, lane_pass, lattices, layout, measure, native, stratum_rows


pytestmark = pytest.mark.native

N, G = 60, 7
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, G, N).astype(np.int32)
VALUES = RNG.normal(size=N)
EACH, EACH_GROUP, ONES = np.arange(N), np.arange(G), np.ones(G)
HUGE = np.iinfo(np.int64).max


def changed(array, value, at=3):
    """A copy with one entry another."""
    array = np.array(array)
    array.flat[at] = value
    return array


def texts(offsets):
    offsets, data = np.array(offsets, np.int64), np.frombuffer(b"abcabcab", np.uint8)
    return codes.text_codes(len(offsets) - 1, offsets.ctypes.data, data.ctypes.data, len(data))


def segments(stratum, group, strata=5):
    return stratum_rows.Segments(np.asarray(stratum), np.asarray(group), strata, 2)


def gather(order=EACH, rows=(20, 30, 10), *, columns=None, y=VALUES, weights=None, z=None, intercept=0):
    columns = (np.ones(N), VALUES) if columns is None else columns
    return stratum_rows.gather(
        stratum_rows.Source(y, columns, weights, None, z, 1, intercept), np.asarray(order), np.array(rows), 2
    )


ROWS = lattices.SortedRows(
    (VALUES > 0) * 1.0, np.ones(N), VALUES, np.ones(N), np.linspace(0, N, G + 1).astype(np.int64)
)


def posteriors(groups=EACH_GROUP, mean=0.0, sd=1.0, start=None, **rows):
    return lattices.posteriors(jg.Binomial(), 0.0, ROWS._replace(**rows), np.asarray(groups), mean, sd, start, 6.0)


K, L = 8, 3
PLACES = 20 * np.arange(L)
WEIGHTS, FIRST, LEVEL = np.full((G, K), 1 / K), np.arange(G), (np.arange(G) % L).astype(np.int32)
TABLES = lattices.Tables(np.full((L, 1), -5), 20 * np.arange(L)[:, None], np.full((L, 1), 20), RNG.normal(size=20 * L))


def expect(weights=WEIGHTS, first=FIRST, level=LEVEL, **tables):
    return lattices.expect(weights, first, level, TABLES._replace(**tables))


def add(first=FIRST, level=LEVEL, at=PLACES, size=20 * L):
    lattices.add(WEIGHTS, first, level, np.zeros(L, np.int64), at, np.zeros(size))


def quantiles(weights=WEIGHTS, first=FIRST, step=ONES, kernel=None, p=(0.1, 0.5)):
    points = np.shape(weights)[1]
    kernel = np.linspace(0, 1, 16 * (2 * points - 1)).reshape(16, -1) if kernel is None else kernel
    return lattices.quantiles(weights, first, step, kernel, np.array(p))


B, P = 6, 2
FITS, RAW, SCALE = np.arange(6), np.full((6, 1), 0.5), np.ones((6, 1))


def fits(**arrays):
    given = {
        "X": RNG.normal(size=(B * 10, P)), "y": (RNG.random(B * 10) > 0.5) * 1.0, "weights": None, "offset": None,
        "z": None, "effects": 1, "design_row": np.arange(B) * 10, "response_row": np.arange(B) * 10,
        "begin": np.tile(np.array([0, 3, 7, 10], np.int32), (B, 1)), "shared": False, "threads": 2,
    }  # fmt: skip
    return lane_pass.LaneRows(**(given | arrays))


def marginal(which=FITS, psi=None, modes=None, **arrays):
    psi = np.full((len(which), P + 2), 0.3) if psi is None else psi
    modes = np.zeros((B, 3, 1)) if modes is None else modes
    return lane_pass.marginal(jg.Binomial(), fits(**arrays), gauss_hermite(3, 1), np.asarray(which), psi, modes)


def climb(which=FITS, x=None, block=None, modes=None, even=(0, 0, 1), **arrays):
    x = np.full((len(which), P + 1), 0.3) if x is None else x
    return lane_pass.climb(
        jg.Binomial(), fits(**arrays), np.asarray(which), x, nodes=gauss_hermite(1, 1),
        modes=np.zeros((B, 3, 1)) if modes is None else modes, even=np.array(even), tol=1e-8, iterations=9,
        block=np.ones((len(which), 1, 1)) if block is None else block,
    )  # fmt: skip


def products(**arrays):
    x = RNG.normal(size=(2, B, G, 9))
    x[0] = 1
    r = RNG.normal(size=(B, G, 9))
    given = {
        "ztz": np.full((1, 1, G, B), 9.0), "ztx": np.einsum("ibgn->igb", x)[:, None], "ztr": r.sum(2).T[None],
        "xx": np.einsum("ibgn,jbgn->ijb", x, x), "xr": np.einsum("ibgn,bgn->ib", x, r), "n": np.full(B, 9.0 * G),
        "rr": np.square(r).sum((1, 2)), "log_weights": np.zeros(B), "origin": np.zeros((2, B)),
        "covariance": Covariance(((0,),)),
    }  # fmt: skip
    return LaneProducts(**(given | arrays))


def profile(raw=RAW, **arrays):
    return gaussian_lanes.profile(raw, products(**arrays), reml=True)


def gaussian_climb(x=RAW, scale=SCALE, even=(1,), **arrays):
    return gaussian_lanes.climb(
        products(**arrays), x, scale=scale, reml=False, even=np.array(even), tol=1e-9, iterations=9
    )


def scatter(columns=(VALUES, CODES), slot=EACH, out=None, **scaling):
    layout.scatter_rows(columns, slot, np.empty((N, 2)) if out is None else out, **scaling)


def slots(group=CODES, stride=ONES):
    return layout.slots_of_rows(group, np.zeros(G, np.int64), stride.astype(np.int64), across=1, block=1, base=0)


def whole(values=CODES, low=0, high=G - 1, missing=None):
    return codes.whole_codes(values, low, high, missing)


# Exported function: a call that is in order, and calls that are to be refused.
CALLS = {
    "column_moments": (lambda: measure.sums([VALUES, CODES], N), [
        lambda: measure.sums([VALUES, CODES[1:]], N), lambda: measure.sums([VALUES], N, np.full(N - 1, 2.0)),
        lambda: measure.sums([VALUES], N + 1),
    ]),
    "counts": (lambda: layout.group_counts(CODES, G), [
        *(lambda bad=bad: layout.group_counts(changed(CODES, bad), G) for bad in (-1, G, 2**31 - 1, -(2**31))),
        lambda: layout.group_counts(CODES, 0),
    ]),
    "slots": (slots, [
        *(lambda bad=bad: slots(changed(CODES, bad)) for bad in (-1, G, 2**31 - 1, -(2**31))),
        lambda: slots(stride=np.ones(G - 1, np.int64)),
    ]),
    "scatter": (scatter, [
        *(lambda bad=bad: scatter(slot=changed(np.arange(N), bad)) for bad in (-1, N, HUGE, -HUGE)),
        *(lambda bad=bad: scatter([VALUES], changed(np.arange(N), bad), np.empty(N)) for bad in (-1, N)),
        lambda: scatter([VALUES, CODES[1:]]), lambda: scatter(out=np.empty((N, 3))),
        lambda: scatter(out=np.empty((0, 2))),
        lambda: scatter(slot=np.arange(N + 1)), lambda: scatter(center=np.zeros(3)), lambda: scatter(scale=np.ones(1)),
    ]),
    "whole_present": (whole, [
        lambda: whole(high=-70), lambda: whole(changed(CODES, G)), lambda: whole(changed(CODES, 64)),
        lambda: whole(changed(CODES, -1)),
        lambda: whole(changed(CODES.astype(np.int64), HUGE)), lambda: whole(missing=np.zeros(N - 1, bool)),
    ]),
    "whole_codes": (whole, [lambda: whole(low=1, high=64 + 1)]),
    "text_codes": (lambda: texts([0, 3, 6, 8]), [
        lambda: texts([0, 3, 2, 8]), lambda: texts([0, 3, 6, 9]), lambda: texts([-1, 3, 6, 8]),
        lambda: texts([0, 3, HUGE, 8]), lambda: texts([0, -HUGE, 6, 8]),
    ]),
    "segments": (lambda: segments(CODES % 5, CODES), [
        lambda: segments(CODES, CODES), lambda: segments(changed(CODES % 5, -1), CODES),
        lambda: segments(CODES % 5, CODES[1:]), lambda: segments(changed(CODES.astype(int) % 5, 10**9), CODES),
    ]),
    "stratum_rows": (gather, [
        lambda: gather(changed(np.arange(N), N)), lambda: gather(changed(np.arange(N), -1)),
        lambda: gather(rows=(20, 30, 11)), lambda: gather(rows=(20, 50, -10)), lambda: gather(y=VALUES[1:]),
        lambda: gather(weights=np.ones(N - 1)), lambda: gather(z=np.ones((2, N))), lambda: gather(intercept=2),
        lambda: gather(columns=(VALUES, VALUES[1:])), lambda: gather(order=np.arange(N - 1)),
    ]),
    "lattices": (posteriors, [
        *(lambda bad=bad: posteriors([0, bad]) for bad in (-1, G, HUGE)), lambda: posteriors(eta=VALUES[1:]),
        *(lambda bad=bad: posteriors(begin=changed(ROWS.begin, bad)) for bad in (-1, N + 1, HUGE)),
        lambda: posteriors(sd=np.ones(G - 1)), lambda: posteriors(start=np.zeros(G + 1)),
        lambda: posteriors(mean=np.zeros(G)),
    ]),
    "lattice_expect": (expect, [
        *(lambda bad=bad: expect(level=changed(LEVEL, bad)) for bad in (-1, L, 2**31 - 1)),
        *(lambda bad=bad: expect(at=changed(TABLES.at, bad, 1)) for bad in (-1, 41 + 20, HUGE)),
        *(lambda bad=bad: expect(length=changed(TABLES.length, bad, 1)) for bad in (-1, K - 1, 61, HUGE)),
        lambda: expect(first=FIRST[1:]), lambda: expect(level=LEVEL[1:]), lambda: expect(at=TABLES.at[1:]),
        lambda: expect(flat=TABLES.flat[1:]),
    ]),
    "lattice_add": (add, [
        *(lambda bad=bad: add(level=changed(LEVEL, bad)) for bad in (-1, L)),
        *(lambda bad=bad: add(first=changed(FIRST, bad)) for bad in (-100, 100)),
        lambda: add(at=np.arange(L - 1)), lambda: add(size=40), lambda: add(first=FIRST[1:]), lambda: add(size=0),
    ]),
    "lattice_quantiles": (quantiles, [
        lambda: quantiles(np.ones((G, 1))), lambda: quantiles(np.ones((G, 0)), kernel=np.zeros((16, 0))),
        lambda: quantiles(first=FIRST[1:]), lambda: quantiles(step=np.ones(G + 1)),
        lambda: quantiles(kernel=np.zeros((16, 2 * K))),
    ]),
    "lanes": (marginal, [
        *(lambda bad=bad: marginal([0, bad]) for bad in (-1, B, HUGE)), lambda: marginal(psi=np.zeros((B, P + 1))),
        lambda: marginal(modes=np.zeros((B, 2, 1))), lambda: marginal(y=np.zeros(B * 10 - 1)),
        *(lambda bad=bad: marginal(design_row=changed(np.arange(B) * 10, bad)) for bad in (-1, B * 10 - 9, HUGE // 2)),
        lambda: marginal(response_row=changed(np.arange(B) * 10, B * 10)), lambda: marginal(weights=np.ones(3)),
        lambda: marginal(begin=np.tile(np.array([0, 7, 3, 10], np.int32), (B, 1))),
        lambda: marginal(z=np.ones((2, B * 10))),
        lambda: marginal(begin=np.tile(np.array([0, 3, 7, 11], np.int32), (B, 1))),
        lambda: marginal(begin=np.tile(np.array([-1, 3, 7, 10], np.int32), (B, 1))),
        lambda: marginal(begin=np.zeros((B - 1, 4), np.int32)),
    ]),
    "lane_climb": (climb, [
        *(lambda bad=bad: climb([0, bad]) for bad in (-1, B)), lambda: climb(x=np.zeros((B, P))),
        lambda: climb(block=np.ones((B, 2, 1))), lambda: climb(block=np.ones((B - 1, 1, 1))),
        lambda: climb(even=(0, 1)), lambda: climb(modes=np.zeros((B, 3, 2))),
    ]),
    "gaussian_profile": (profile, [
        lambda: profile(np.ones((B, 2))), lambda: profile(np.ones((B - 1, 1))), lambda: profile(xx=np.ones((2, 3, B))),
        lambda: profile(covariance=Covariance(((0, 1),))), lambda: profile(ztr=np.ones((1, G - 1, B))),
        lambda: profile(n=np.ones(B - 1)), lambda: profile(rr=np.ones((1, B))),
    ]),
    "gaussian_climb": (gaussian_climb, [
        lambda: gaussian_climb(np.ones((B, 2))), lambda: gaussian_climb(scale=np.ones((B - 1, 1))),
        lambda: gaussian_climb(even=(1, 1)), lambda: gaussian_climb(ztx=np.ones((2, 1, G, B - 1))),
    ]),
}  # fmt: skip


def test_every_exported_function_is_here():
    sources = "".join(path.read_text() for path in (Path(__file__).parents[1] / "kernels" / "cpu").glob("*.cc"))
    exported = set(re.findall(r"^(?:JAXGLMM_EXPORT|extern \"C\")[^;{]*?\bjaxglmm_(\w+)\(", sources, re.MULTILINE))
    told = {"ffi_api_major", "ffi_api_minor", "kernels_version", "handlers"}  # read by native.py
    assert exported - told - {"elementary"} == set(CALLS)  # that one is called by tests alone
    handlers = set(re.findall(r"^JAXGLMM_HANDLER\((jaxglmm_\w+)", sources, re.MULTILINE))
    native.library().jaxglmm_handlers.restype = ctypes.c_char_p
    assert handlers == set(native.library().jaxglmm_handlers().decode().split())  # all of them: test_native_fuzz.py


@contextlib.contextmanager
def calls_of(name):
    """A list that is added to whenever this function of the library returns."""
    function, found = getattr(native.library(), f"jaxglmm_{name}"), []
    before = function.errcheck

    def count(result, *call):
        found.append(name)
        return result if before is None else before(result, *call)

    function.errcheck = count
    yield found
    del function.errcheck
    if before is not None:
        function.errcheck = before


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_refused(name):
    good, bad = CALLS[name]
    with calls_of(name) as called:
        good()
    assert called
    for number, call in enumerate(bad):
        with pytest.raises(ValueError, match=r"\w"):
            call()
            pytest.fail(f"{name}, {number}: not refused")


def test_what_is_not_a_number_stays_none():
    bad = changed(VALUES, np.nan)
    assert np.isnan(measure.sums([bad], N)[0, 3])
    out = np.zeros((N, 2))
    scatter([bad, CODES], out=out)
    assert np.isnan(out[3, 0]) and np.isfinite(out).sum() == 2 * N - 1
    assert gather(y=bad).suspect.dtype == bool and np.isnan(gather(y=bad).y[3])
    assert gather(columns=(np.ones(N), bad)).suspect.tolist() == [True, False, False]
    assert gather(weights=bad).suspect[0]
    for name in ("y", "eta", "z"):
        found = posteriors(**{name: bad})
        assert np.isnan(found.mean[0]) and np.isfinite(found.mean[1:]).all(), name
    assert np.isfinite(posteriors(weights=changed(np.ones(N), np.nan)).mean).all()  # such a weight is none
    assert np.isnan(posteriors(sd=np.nan).mean).all() and np.isnan(posteriors(mean=np.nan).mean).all()
    assert np.isnan(expect(changed(WEIGHTS, np.nan))).sum() == 1
    quantiles(changed(WEIGHTS, np.nan)), quantiles(p=(np.nan, 0.5))
    assert np.isnan(quantiles(step=changed(np.ones(G), np.nan))).sum() == 2
    for name in ("X", "y"):
        value, *_ = marginal(**{name: changed(getattr(fits(), name), np.nan)})
        assert np.isnan(value[0]) and np.isfinite(value[1:]).all(), name
        assert climb(**{name: changed(getattr(fits(), name), np.nan)}).reason[0] == 3  # not finite
    assert np.isnan(profile(ztz=changed(np.full((1, 1, G, B), 9.0), np.nan))["value"]).sum() == 1
    assert np.isnan(profile(np.full((B, 1), np.nan))["value"]).all()
    assert (gaussian_climb(np.full((B, 1), np.nan))["reason"] == 3).all()
