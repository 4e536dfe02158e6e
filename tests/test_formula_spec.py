"""A saved specification makes the same bits in another process."""

import json

import numpy as np
import pytest

from jaxglmm.errors import DataError, FormulaError
from jaxglmm.formula.frame import model_frame
from jaxglmm.formula.saved import spec_from_json, spec_to_json
from jaxglmm.model.families import get_family


DATA = """
import numpy as np
rng = np.random.default_rng(5)
n = 200
data = {
    "y": rng.normal(size=n), "x": rng.gamma(2.0, size=n), "z": rng.normal(size=n), "k": rng.integers(0, 4, n),
    "f": np.array(["b", "a", "c"])[rng.integers(0, 3, n)], "q": rng.random(n) < 0.4, "t": rng.gamma(3.0, size=n),
    "g": rng.integers(0, 30, n), "s": rng.integers(0, 5, n).astype(str), "my.var": rng.normal(size=n),
}
"""
CHECK = """
import hashlib
def digest(spec, data):
    out = hashlib.sha256()
    X, offset = spec.fixed_matrix(data)
    for array in (X, offset, *spec.response_values(data)):
        out.update(np.ascontiguousarray(array).tobytes())
    for i in range(len(spec.terms)):
        z, labels, codes = spec.effect_matrix(i, data)
        out.update(z.tobytes() + codes.tobytes() + repr(labels.tolist()).encode())
    return out.hexdigest()
"""
FORMULAS = [
    "y ~ bs(x, df = 5) + poly(z, 3) + C(k) + center(log(x)) * f + q + offset(center(log(t))) + (1 + scale(z) | g)",
    "log(t) ~ ns(x, df = 4) + as.factor(k):z + I(x^2) + I(z > 0) + factor(f) + (poly(x, 2) || g:s)",
    "q ~ 0 + f + scale(center(z)) + cr(x, df = 4, constraints = 'center') + log1p(x) + my.var + I(my.var^2) + (1 | s)",
    "cbind(k, k+1) ~ C(f,contr.sum) + relevel(f, ref = 'c'):x + poly(x, 2, raw=T) + bs(z, knots = c(0, 1)) + (0 + f|g)",
]


def namespace():
    names = {}
    exec(DATA + CHECK, names)  # the same text that the other process runs
    return names


@pytest.mark.parametrize("formula", FORMULAS)
def test_bits_survive_saving_in_a_fresh_process(formula, tmp_path, run_python):
    names = namespace()
    family = get_family("binomial" if formula.startswith(("q", "cbind")) else "gaussian")
    frame = model_frame(formula, names["data"], family=family, levels={"f": ["c", "a", "b"]})
    assert frame.spec.fixed_matrix(names["data"])[0].tobytes() == frame.X.tobytes()
    for i, term in enumerate(frame.terms):
        z, labels, codes = frame.spec.effect_matrix(i, names["data"])
        assert z.tobytes() == term.z.tobytes() and (codes == term.codes).all()
        assert (labels == term.levels[term.codes]).all()
    assert names["digest"](frame.spec, names["data"])
    (tmp_path / "spec.json").write_text(json.dumps(spec_to_json(frame.spec), allow_nan=False))
    code = f"""
import json
from jaxglmm.formula.saved import spec_from_json, spec_to_json
{DATA}{CHECK}
spec = spec_from_json(json.load(open({str(tmp_path / "spec.json")!r})))
print(digest(spec, data))
print(digest(spec, {{name: column[:7] for name, column in data.items()}}))
"""
    whole, part = run_python(code).split()
    assert whole == names["digest"](frame.spec, names["data"])
    assert part == names["digest"](frame.spec, {name: column[:7] for name, column in names["data"].items()})


def test_level_tables_as_arrays():
    data = namespace()["data"]
    frame = model_frame("y ~ x + (1 | g:s) + (1 | f)", data, family=get_family("gaussian"))
    arrays: dict[str, np.ndarray] = {}
    saved = json.loads(json.dumps(spec_to_json(frame.spec, arrays)))
    assert all(a.dtype != object for a in arrays.values())
    loaded = spec_from_json(saved, arrays)
    for i, term in enumerate(frame.terms):
        assert (loaded.effect_matrix(i, data)[2] == term.codes).all()
        assert loaded.terms[i].grouping.labels.tolist() == term.levels.tolist()
    with pytest.raises(DataError, match="was not given"):
        spec_from_json(saved)
    with pytest.raises(DataError, match="version"):
        spec_from_json(saved | {"version": 99})


def test_dates_and_booleans_as_groups():
    data = {
        "y": np.arange(4.0),
        "d": np.array(["2020-02-01", "2020-01-01"] * 2, dtype="M8[D]"),
        "b": np.array([True, True, False, False]),
    }
    frame = model_frame("y ~ (1 | d) + (1 | b) + (1 | b:d)", data, family=get_family("gaussian"))
    loaded = spec_from_json(json.loads(json.dumps(spec_to_json(frame.spec))))
    for i, term in enumerate(frame.terms):
        assert (loaded.effect_matrix(i, data)[2] == term.codes).all()


def test_a_saved_formula_runs_no_code_of_its_own(tmp_path):
    frame = model_frame("y ~ log(x)", {"y": [1.0, 2], "x": [1.0, 2]}, family=get_family("gaussian"))
    stolen = tmp_path / "stolen"
    text = json.dumps(spec_to_json(frame.spec)).replace("log(x)", f"open('{stolen}', 'w')")
    with pytest.raises(FormulaError, match="unknown function 'open'"):
        spec_from_json(json.loads(text)).fixed_matrix({"x": [1.0]})
    assert not stolen.exists()
