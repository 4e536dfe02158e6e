"""Evaluations in parts by several threads: those of the whole design."""

import jax
import numpy as np
import pytest

from jaxglmm.design import parts
from jaxglmm.design.design import make_design
from jaxglmm.model.families import get_family
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.objectives.marginal import gauss_hermite


@pytest.mark.parametrize("longest", [5, 60])
def test_parts_add_up_to_the_whole(x64, monkeypatch, longest):
    monkeypatch.setenv("JAXGLMM_KERNELS", "plain")
    rng = np.random.default_rng(0)
    counts = np.append(rng.integers(1, 6, 19_000), longest)
    codes = np.repeat(np.arange(len(counts)), counts)
    X = np.column_stack([np.ones(len(codes)), rng.standard_normal(len(codes))])
    y = (rng.random(len(codes)) < 0.4) * 1.0
    design, _ = make_design(y, X, codes=codes, constant=0.7)
    assert design.index.n_short % 16 == 0 and bool(design.index.n_long) == (longest > 32)
    arguments = gauss_hermite(1, 1), np.array([-0.4, 0.1, 0.6, 0.0]), np.zeros_like(design.terms[0].z)
    whole = evaluate(get_family("binomial"), design, *arguments)
    monkeypatch.setattr(parts, "_MANY_SLOTS", 0)
    found = {}
    for threads in (2, 3):
        monkeypatch.setattr(parts, "threads", lambda threads=threads: threads)
        found[threads] = evaluate(get_family("binomial"), jax.device_put(design), *arguments)
    assert not any(isinstance(v, jax.Array) for v in found[2])  # by parts
    for a, b, expected in zip(found[2], found[3], whole, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
