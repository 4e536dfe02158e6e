"""Calls of the public face, drawn by hypothesis: formulas, options, verbs, of tables good and bad.

A call is plain values, so that what is printed of one is enough to make it again. Tables have few numbers of rows, and
effects of several columns are drawn rarely where their responses are not Gaussian, so that few programs are compiled.
"""

import inspect
from dataclasses import dataclass

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from public_tables import CHANGES, DAMAGES, KINDS, ODD_G, ODD_X, Recipe

import jaxglmm as jg


COLUMNS = ("y", "b", "n", "p", "u", "x", "z", "f", "k", "g", "h", "c", "w", "o", ODD_X, ODD_G)
NAN, INFINITE = float("nan"), float("inf")


@dataclass(frozen=True)
class Made:
    """A value that is made of the table, with words of how."""

    how: str

    def __call__(self, columns):
        n = len(columns["o"])
        each = np.arange(n)
        return {
            "ones": np.ones(n), "short": np.ones(max(n - 1, 0)), "some zero": each % 3 * 1.0, "text": np.full(n, "a"),
            "NaN": np.full(n, NAN), "negative": -np.ones(n), "tiny": np.full(n, 1e-300), "huge": np.full(n, 1e30),
            "one huge": np.where(each == 3, 1e30, 1.0), "matrix": np.ones((n, 2)),
            "700": np.where(each % 2, 700.0, -700.0), "responses": np.ones((n, 2)) * each[:, None],
        }[self.how]  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A fit of a table, and the verbs asked of it: (name, arguments)."""

    recipe: Recipe
    function: str
    formula: object
    options: tuple[tuple[str, object], ...] = ()
    verbs: tuple[tuple[str, tuple[tuple[str, object], ...]], ...] = ()

    def given(self, columns) -> dict:
        return {name: value(columns) if isinstance(value, Made) else value for name, value in self.options}


# --- How things are drawn ----------------------------------------------------------------------------------


def mostly(usual, rare, one_in=8):
    """One in so many draws is a rare one."""
    return st.integers(0, one_in - 1).flatmap(lambda k: rare if k == one_in - 1 else usual)


def among(*values):
    return st.sampled_from(values)


def good_or(good, odd, one_in=3):
    return mostly(among(*good), among(*odd), one_in)


def some(options: dict, most: int = 2):
    """A few of some named options."""
    if not options:
        return st.just(())
    names = st.lists(st.sampled_from(sorted(options)), max_size=most, unique=True)
    return names.flatmap(lambda ns: st.tuples(*(st.tuples(st.just(n), options[n]) for n in ns)))


# --- Tables and formulas -----------------------------------------------------------------------------------

changes = st.lists(st.tuples(among(*COLUMNS), among(*sorted(CHANGES))), min_size=1, max_size=2).map(tuple)
recipes = st.builds(
    Recipe, mostly(among(60), mostly(among(24), among(5, 2, 1, 0), 4), 5), st.integers(0, 3),
    mostly(st.just(()), changes, 3), among(*KINDS), mostly(st.none(), among(*sorted(DAMAGES)), 5),
)  # fmt: skip

GOOD_TERMS = (
    *("x", "z", "x", "x", "1"),
    *f"f;k;x:z;x * f;C(k);I(x**2);log(p);poly(x, 2);scale(x);offset(o);0;`{ODD_X}`;factor(k);f:c;(x + z)^2".split(";"),
)
ODD_TERMS = (
    *f'-1;.;nosuch;ns(x, 3);bs(x, df=4);log(x);sqrt(z);x + x;x +;I(x;Q("{ODD_X}");{ODD_X};f * c * k;1 / x'.split(";"),
    *"x / 0;x ** z;lambda x: x;__import__('os');poly(x, 99);C(g);x:g;y;b;np.log(p);offset(x, z);offset(f)".split(";"),
    *"1e400;'a';C(f, levels=['f0']);relevel(f, ref='zz');exp(1e3 * x);x | z;(x;x);é;\0;~;cut(x, 3)".split(";"),
    *"ifelse(x > 0, 1, 0);as.numeric(f);x == 1;f == 'f0';hashed(x);0 * x;poly(k, 3);x %in% f;True;None".split(";"),
    *"scale(f);center(x);x.mean();{x};f/c;x:x;log(0 * x);I(1 / 0);C(x);poly(x, x);factor(factor(k))".split(";"),
)
BARS = ("", "(1 | g)", "(1 | g)", "(1 | g)", "(1 | h)", f"(1 | `{ODD_G}`)", "(1 | g:h)")
EFFECTS = ("(x | g)", "(x || g)", "(0 + x | g)", "(1 | g) + (1 | h)", "(1 | c/g)")
ODD_BARS = (
    *"(1 | x);(1 | nosuch);(f | g);(x + z | g);(1 | g) + (1 | g);(1 | g/h);(1 | f);(1 | g) + (0 + x | g)".split(";"),
    *"(x | g) + (z || h);(1 | g) + (1 | h) + (1 | c);(0 | g);(| g);(1 | );((1 | g) | h);1 | g;(1 | g * h)".split(";"),
    *"(1 ||| g);(1 | factor(k));(poly(x, 2) | g);(x:z | g);(1 | y);(log(p) | g);(1 | 1);(C(k) || g)".split(";"),
    *f"(1 | {ODD_G});(1 | g) : x;(offset(o) | g);(1 | g + h);(-1 + x + z | g);(1 | g;(x | g:nosuch)".split(";"),
)
ODD_RESPONSES = (
    *";f;g;nosuch;log(p);cbind(n, w);cbind(n, w, k);cbind(x, z);1;y + z;I(y**2);log(x);o;~;C(k);n / w".split(";"),
    *("b == 1", "(1 | g)", f"`{ODD_X}`"),
)
FAMILIES = {
    "gaussian": "y", "binomial": "b", "poisson": "n", "negativebinomial": "n", "gamma": "p", "beta": "u",
    "binomial probit": "b", "binomial cloglog": "b", "gamma log": "p", "poisson sqrt": "n",
}  # fmt: skip
# With native kernels: the others compile a program for each shape.
NATIVE = ("gaussian", "gaussian", "gaussian", "binomial", "poisson", "negativebinomial", "gamma log")


def family_of(name: str):
    family, _, link = name.partition(" ")
    classes = {"binomial": jg.Binomial, "gamma": jg.Gamma, "poisson": jg.Poisson}
    return classes[family](link=link) if link else family


def formulas(response: str, gaussian: bool):
    terms = st.lists(mostly(among(*GOOD_TERMS), among(*ODD_TERMS), 14), min_size=1, max_size=2)
    usual = mostly(among(*BARS), among(*EFFECTS), 2 if gaussian else 16)
    left = mostly(st.just(response), among(*ODD_RESPONSES), 20)
    made = st.builds(
        lambda y, t, b: f"{y} ~ {' + '.join([*t, *([b] if b else [])])}", left, terms,
        mostly(usual, among(*ODD_BARS), 8),
    )  # fmt: skip
    cut = st.builds(lambda text, i: text[: i % len(text)] + text[i % len(text) + 1 :], made, st.integers(0, 80))
    junk = st.text("yxgf~()|+-*/:^ `'\"01.,%\0é{}[]=<>#\n\\", max_size=30)
    return mostly(made, cut | junk | among(None, 3, "", b"y ~ x"), 15)


# --- Options and verbs -------------------------------------------------------------------------------------

levels = good_or((0.95, 0.5, 0.99), (0.999, 1 - 1e-15, 1e-300, 0.0, 1.0, 2.0, -1.0, NAN, True, "0.9"), 6)
seeds = good_or((0, 1), (-1, 1.5, "a", None), 8)
flags = st.booleans()
matrix = lambda r: [[1.0, r], [r, 1.0]]
OPTIONS = {
    "method": good_or(("laplace", "agq", "auto"), ("joint", "ml", ""), 8),
    "n_agq": good_or((1, 3, 9), (0, -1, 2.5, 10**9, 200), 8),
    "reml": mostly(flags, among(1, "yes", None), 10),
    "weights": good_or(
        ("w", Made("ones")),
        ("o", "f", "nosuch", "x", *map(Made, "some zero,short,text,NaN,negative,tiny,huge,one huge,matrix".split(","))),
    ),
    "offset": good_or(("o", Made("ones")), ("f", "nosuch", *map(Made, ("short", "700", "NaN", "huge")))),
    "penalty": among(
        *(jg.Ridge(lam) for lam in (0.1, 1e6)), *(jg.Lasso(lam) for lam in (0.02, 0.0)), jg.ElasticNet(0.05, 0.5), 3
    ),
    "prior": among(
        *({"sd": prior} for prior in (jg.GammaPrior(2.5, 0.1), jg.HalfCauchyPrior(1.0), jg.NormalPrior(1.0))),
        *({"x": prior} for prior in (jg.StudentPrior(3, 1.0), jg.GammaPrior(2, 1))),
        *({"beta": jg.NormalPrior(2.5)}, {"g": jg.HalfStudentPrior(3, 1.0)}, {"nosuch": jg.NormalPrior(1)}, {}),
    ),
    "theta": among(
        *({"g": sd} for sd in (0.5, 0.0, 1000.0, 1e-300, 1e200, INFINITE, -1.0, "a", [0.5, 0.2])),
        *({"g": matrix(0.2)}, {"g": matrix(2.0)}, {}, {"h": 1.0}, {"g": 0.5, "h": 0.3}, 3),
    ),
    "levels": good_or(
        ({"f": ["f2", "f0", "f1"]}, {"k": "categorical"}),
        (
            *({"f": f} for f in (["f0"], [], "categorica", 3, ["f0", "f0", "f1", "f2"])),
            {"nosuch": ["a"]},
            {"g": ["g0"]},
        ),
    ),
    "full_rank": flags,
    "precision": good_or(("double", "mixed", "single"), ("half",), 8),
    "solver": good_or(("auto", "separable", "schur", "krylov"), ("lu",), 8),
    "tol": good_or((1e-8, 1e-12), (0.0, 1.0, -1.0, NAN, 1e300)),
    "max_iterations": good_or((50, 100), (0, 1, 3, -1)),
    "throw": flags,
}
again = among("same", "other", "new levels", "changed", "no group", "no response", "file", None)
groups = mostly(st.none(), among("g", "h", "nosuch", 3, "c:g"), 4)
VERBS = {
    "predict": {
        "kind": good_or(("response", "link"), ("terms",), 10), "new": again, "interval": levels, "uncertainty": flags,
        "effects": good_or(("conditional", "mode", "marginal", "population"), ("all",), 12),
        "new_levels": among("integrate", "population", "error", "ignore"),
    },
    "ranef": {
        "group": groups, "interval": levels, "uncertainty": flags,
        "prior": among(jg.HalfStudentPrior(3, 1.0), jg.GammaPrior(2, 1.0), jg.NormalPrior(1.0), 3),
    },
    "rank": {
        "top": good_or((0.2, 3, None), (0, -1, 1.5, 1000, NAN, True)), "alpha": among(0.1, 0.5, 0.0, 1.0),
        "order": among("rank", "top", "r_value", "mean", "threshold", "x"), "r_values": flags, "interval": levels,
        "threshold": among(0.0, 1.0, -1e300, NAN), "group": groups, "data": again,
        "term": mostly(st.none(), among("Intercept", "x", "nosuch"), 3),
    },
    "score": {"history": again, "interval": levels},
    "update": {"rows": again},
    "simulate": {"n": good_or((1, 3), (0, -1, 2.5, "a")), "seed": seeds},
    "confint": {
        "method": good_or(("auto", "wald"), ("profile", "boot")), "level": levels,
        "parameters": among(None, ["x"], "x", ["nosuch"], [], "sigma"),
    },
    "residuals": {"kind": among("response", "pearson", "deviance", "quantile", "raw"), "seed": seeds},
    "loo": {"kind": among("response", "link", "x")},
    "icc": {"group": groups},
    "marginal_coefficients": {"data": again},
    "test": {
        "contrasts": among("x", "x = z", ["x", "z"], "x - z", "nosuch", "x +", [1.0, 0.0], [[1.0]], ""),
        "rhs": among(0.0, 1.0, NAN, [1.0, 2.0]),
    },
    "anova": {}, "summary": {}, "overdispersion": {}, "to_dict": {},
    "vcov": {"kind": among("model", "cluster", "x")},
    "save": {"rows": flags},
    "bootstrap": {"n": among(2, 5, 0, 1), "kind": among("parametric", "cases", "x"), "seed": seeds},
    "jackknife": {},
    "cross_validate": {"folds": among(2, 3, 0, 1, 1000, 2.5, "a"), "by": among("rows", "groups", "x"), "seed": seeds},
    "multistart": {"n": among(2, 0), "seed": seeds},
}  # fmt: skip
# Those that compile programs of their own, or fit many times, are drawn less often.
HEAVY = ("bootstrap", "jackknife", "cross_validate", "multistart")
LIGHT = tuple(name for name in VERBS if name not in HEAVY)
FUNCTIONS = ("fit",) * 18 + ("fit_many", "fit_each", "fit_path", "command line", "command line", "command line")
# Arguments of the other functions: those that are always given, and others.
NEEDED = {
    "fit_many": {"responses": among(["y", "x"], ["n", "w"], ["b"], "y", [], ["nosuch"], Made("responses"), 3)},
    "fit_each": {"by": good_or(("h", "k", "c"), ("f", "g", "x", "nosuch", "y", 3), 4)},
    "fit_path": {"n_lambdas": among(3, 4, 0)},
}
MORE = {
    "fit_path": {
        "alpha": among(1.0, 0.5, 0.0, 2.0), "lambdas": among(None, [0.1], [0.5, 0.1, 0.0], [-1.0], []),
        "cv": among(None, 2, 0, 1, 1000), "dummies": among((), ["f"], ["nosuch"]), "standardize": flags, "seed": seeds,
        "scale": among("likelihood", "rss"),
    },
}  # fmt: skip


@st.composite
def calls(draw, quick: bool = False) -> Call:
    """A call; `quick` ones are of Gaussian responses, for which hardly any program is compiled."""
    function = draw(among("fit", "fit", "fit", "fit_each", "command line") if quick else among(*FUNCTIONS))
    family = "gaussian" if quick else draw(mostly(among(*NATIVE), among(*FAMILIES), 12))
    response = draw(mostly(st.just(FAMILIES[family]), among(*COLUMNS), 20))
    recipe = draw(recipes)
    if function == "command line":
        recipe = Recipe(
            recipe.rows, recipe.seed, recipe.changes, draw(among("csv", "csv.gz", "parquet")), recipe.damage
        )
    formula = draw(formulas("" if function == "fit_many" else response, family == "gaussian"))
    options = dict(OPTIONS)
    if function != "command line":
        taken = inspect.signature(getattr(jg, function)).parameters
        options = {name: strategy for name, strategy in options.items() if name in taken}
    given = [("family", family), *draw(some({**options, **MORE.get(function, {})}))]
    given += [(name, draw(strategy)) for name, strategy in NEEDED.get(function, {}).items()]
    heavy = among(*LIGHT) if quick else among(*HEAVY)
    verbs = draw(st.lists(mostly(among(*LIGHT), heavy, 60), min_size=4, max_size=8))
    asked = tuple((verb, draw(some(VERBS[verb], 4 if verb in ("predict", "rank") else 2))) for verb in verbs)
    return Call(recipe, function, formula, tuple(given), asked)


def call_of(seed: int, quick: bool = False) -> Call:
    """The call of a seed: drawn anew, where hypothesis by itself would rather change the one before."""
    found = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(calls(quick))
    def draw(call):
        found.append(call)

    draw()
    return found[-1]  # the first one is the simplest of all
