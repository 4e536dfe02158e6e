"""Group effects as features of a next-stage model, without leakage: a scikit-learn transformer."""

import warnings
from collections.abc import Mapping
from typing import Any

import narwhals as nw
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.model_selection import check_cv
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from jaxglmm.arguments import choice, optional, seed, text, told, whole
from jaxglmm.errors import DataError, DataWarning
from jaxglmm.folds import GroupEffects, effects_near, effects_without_each_row, group_effects
from jaxglmm.formula.frame import model_frame
from jaxglmm.formula.table import open_table
from jaxglmm.model.families import get_family
from jaxglmm.objectives.marginal import MOST_NODES
from jaxglmm.ops.computing import computing
from jaxglmm.problem import make_problem


FEATURES = ("mean", "sd", "reliability", "log_count")
THETA = ("fold", "full")
# Names of the columns that the models see.
_ID, _Y = "id", "y"
_MOST_CLASSES = 20
# Standard deviation on the link scale where IDs determine a binary response, so that no finite one is the best.
_LARGE_SD = 10.0


class RandomEffectEncoder(TransformerMixin, BaseEstimator):
    """Encode ID columns by the posterior of a random intercept for each ID.

    For every column a model `y ~ 1 + (1 | ID)` is fitted; an ID becomes the mean and the standard deviation of its
    effect given its rows, how far these decide (`reliability`), and log(1 + rows). Rows shrink towards the mean of all
    IDs by their own evidence, with a variance between IDs that is estimated, not guessed.

    `fit_transform` gives each row the effect of its ID from rows of *other* folds, so that no feature has seen the
    response beside which it stands; `transform` uses all rows of the fit. An ID that was not seen, a missing ID, and a
    row that no earlier fold precedes get the distribution of all IDs: mean 0, sd tau, reliability 0.

    Parameters
    ----------
    cv : int, splitter, iterable of (train, test) or "loo", default 5
        Folds of `fit_transform`; an integer shuffles rows (stratified for two classes). Every row may be held out once
        at most. "loo" leaves out single rows given the parameters of all: for diagnostics only, since within an ID it
        is a decreasing function of the row's own response, which a learner that can tell IDs apart decodes.
    family : str or family, default "auto"
        Of the response: "auto" is "binomial" for classes and "gaussian" for numbers. Text and whole numbers are classes
        (scikit-learn's `type_of_target`): for counts and the like pass "gaussian" or "poisson". Three to twenty classes
        are encoded one against the rest, each with features of its own, as by `sklearn.preprocessing.TargetEncoder`.
    features : tuple of str
        Some of "mean" and "sd" (link scale), "reliability" (within [0, 1]) and "log_count".
    theta : {"fold", "full"}
        Whether the variance between IDs is estimated anew in every fold, or taken from the fit of all rows. The
        latter lets a single number, tau, see the responses held out; it saves most of the time of the folds.
    time : str or int, optional
        A column of X with times. It is not encoded; `cv` + 1 blocks of time are formed, and a row's features use only
        rows of earlier blocks.
    method, n_agq : str, int
        As in `jaxglmm.fit`; by default quadrature with 15 nodes, alike for all rows and every fold.
    random_state : int or RandomState, optional
        Of the shuffled folds.

    Attributes
    ----------
    tau_ : dict of str to float
        Standard deviation between IDs, link scale, by column; of more than two classes by column and class, "id_b".
    classes_ : (2,) or (K,)
        Of two the second is modelled; of more each.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    References
    ----------
    Micci-Barreca (2001), SIGKDD Explor. 3, 27. Prokhorenkova et al. (2018), NeurIPS 31, section 3.
    """

    def __init__(
        self,
        cv=5,
        *,
        family="auto",
        features=FEATURES,
        theta="fold",
        time=None,
        method="agq",
        n_agq=15,
        random_state=None,
    ):
        self.cv = cv
        self.family = family
        self.features = features
        self.theta = theta
        self.time = time
        self.method = method
        self.n_agq = n_agq
        self.random_state = random_state

    def fit(self, X, y):
        """Estimate the effect of every ID from all rows.

        Parameters
        ----------
        X : table or array (n, columns)
            ID columns: text, integers, categories or numbers.
        y : (n,)

        Raises
        ------
        DataError
        """
        self._fit(X, y)
        return self

    def transform(self, X):
        """Features of each row from the effects given all rows of the fit.

        Returns
        -------
        float (n, columns x features)
            Or a table, after `set_output`.
        """
        check_is_fitted(self)
        columns = self._columns(X, reset=False)
        parts = []
        for column, grouping, effects in self._levels.values():
            loaded, _ = open_table({_ID: columns[column]}).load([_ID])
            parts.append(_features(self.features, effects, grouping.codes(loaded)))
        return np.concatenate(parts, axis=1)

    def fit_transform(self, X, y, groups=None):  # pyright: ignore[reportIncompatibleMethodOverride]: y is needed
        """Fit, and return features of each row that were made without its fold.

        Parameters
        ----------
        X, y
            As in `fit`.
        groups : (n,), optional
            For splitters that ask for them.

        Returns
        -------
        float (n, columns x features)
            Or a table, after `set_output`.
        """
        columns, y, problems = self._fit(X, y)
        if isinstance(self.cv, str) and self.cv == "loo":
            return self._leave_one_out(problems, len(y))
        folds = self._folds(columns, y, groups)
        parts = []
        for name, (_, _, prior) in self._levels.items():
            out = _features(self.features, prior, np.full(len(y), -1))
            problem = problems[name]
            rows, codes = problem.frame.rows, np.full(len(y), -1)
            codes[rows] = problem.frame.terms[0].codes
            for train, test in folds:
                kept = np.zeros(len(y))
                kept[train] = 1.0
                weights = problem.frame.weights * kept[rows]
                effects = effects_near(problem, weights, prior.estimate, held=self.theta == "full")
                effects = effects or self._effects(name, problem, weights, prior)
                out[test] = _features(self.features, effects, codes[test])
            parts.append(out)
        return np.concatenate(parts, axis=1)

    def get_feature_names_out(self, input_features=None):
        """Names of the output's columns: the ID column's, the class of more than two, the feature's; joined by _."""
        check_is_fitted(self)
        return np.array([f"{name}_{feature}" for name in self._levels for feature in self.features], object)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = tags.input_tags.string = tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_levels")

    # --- The models ----------------------------------------------------------------------------------------

    def _fit(self, X, y):
        """Fit every column, once for each class of more than two: the columns, y, and the laid-out problems by name."""
        self._check_options()
        columns = self._columns(X, reset=True)
        y, targets, family = self._response(y, columns)
        self._levels, problems = {}, {}
        for column, values in columns.items():
            for label, response in targets.items():
                if column == self._time_name:
                    continue
                name = f"{column}{label}"
                frame = model_frame(f"{_Y} ~ 1 + (1 | {_ID})", {_Y: response, _ID: values}, family=family)
                with computing():
                    problems[name] = make_problem(frame, family, estimated=False)
                effects = self._effects(name, problems[name], frame.weights)
                self._levels[name] = (column, frame.spec.terms[0].grouping, effects)
        self.tau_ = {name: effects.tau for name, (_, _, effects) in self._levels.items()}
        return columns, y, problems

    def _effects(self, name, problem, weights, all_rows: GroupEffects | None = None):
        """Effects of the IDs given the rows of positive weight; a fold has those of all rows before it."""
        term, y, held = problem.frame.terms[0], problem.frame.y, None
        tau = None if all_rows is None else all_rows.tau
        used = weights > 0
        codes, response = term.codes[used], y[used]
        counts = np.bincount(codes, minlength=len(term.levels))
        if np.ptp(response) == 0 or counts.max() < 2 or np.sum(counts > 0) < 2:
            self._warn(
                name,
                "rows that say nothing about a variance between IDs (one response, one ID, or no ID twice): every ID "
                "gets the distribution of all",
            )
            spread = tau or 0.0
            zero = np.zeros(len(counts))
            return GroupEffects(zero, zero + spread, zero, counts, spread)
        if tau is not None and self.theta == "full":
            held = {term.group: tau}
        if problem.family.name in ("gaussian", "binomial") and _determined(response, codes, counts):
            if problem.family.name == "gaussian":
                self._warn(name, "IDs that determine the response: every ID gets its own mean")
                return _own_means(response, codes, counts)
            self._warn(name, f"IDs that determine the response: their standard deviation is held at {_LARGE_SD:g}")
            held = {term.group: _LARGE_SD}
        return group_effects(problem, weights, method=self.method, n_agq=self.n_agq, theta=held)

    def _leave_one_out(self, problems, n):
        warnings.warn(
            "features that leave out single rows fall as the row's own response rises, which a learner that can tell "
            "IDs apart decodes: use them for diagnostics, and folds (cv=5) for training",
            DataWarning,
            stacklevel=4,
        )
        parts = []
        for name, (_, _, all_rows) in self._levels.items():
            rows, codes = problems[name].frame.rows, problems[name].frame.terms[0].codes
            mean, sd = np.zeros(len(rows)), np.full(len(rows), all_rows.tau)
            if all_rows.estimate is not None:
                mean, sd = effects_without_each_row(problems[name], all_rows.estimate)
            tau = all_rows.tau
            reliability = np.clip(1 - np.square(sd / tau), 0.0, 1.0) if tau > 0 else np.zeros_like(sd)
            each = GroupEffects(mean, sd, reliability, all_rows.n[codes] - 1, tau)
            own = np.full(n, -1)
            own[rows] = np.arange(len(rows))
            parts.append(_features(self.features, each, own))
        return np.concatenate(parts, axis=1)

    def _warn(self, name, what):
        warnings.warn(f"column {name!r} has {what}", DataWarning, stacklevel=5)

    # --- Arguments -----------------------------------------------------------------------------------------

    def _check_options(self):
        given = self.features
        if (
            not isinstance(given, list | tuple)
            or not given
            or not all(isinstance(f, str) and f in FEATURES for f in given)
        ):
            raise DataError(f"features must be some of {FEATURES}; found {told(self.features)}")
        choice(*THETA)("theta", self.theta)
        choice("agq", "laplace", "auto")("method", self.method)
        optional(whole(1, MOST_NODES))("n_agq", self.n_agq)
        text_or_set = isinstance(self.cv, str | bytes | Mapping | set)
        splits = not text_or_set and (np.iterable(self.cv) or hasattr(self.cv, "split"))
        if self.cv is not None and not splits and not (isinstance(self.cv, str) and self.cv == "loo"):
            whole(2)("cv", self.cv)
        optional(text)("time", self.time)
        seed("random_state", self.random_state)

    def _columns(self, X, reset):
        """The columns of X by name, in the caller's own kind."""
        frame = nw.from_native(X, eager_only=True, pass_through=True)
        if isinstance(frame, nw.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            columns = {name: frame.get_column(name).to_native() for name in frame.columns}
        else:
            values: Any = validate_data(
                self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2 if reset else 1
            )
            columns = {f"x{j}": values[:, j] for j in range(values.shape[1])}
        if reset:
            self._time_name = self._name_of_time(tuple(columns))
        return columns

    def _name_of_time(self, names):
        if self.time is None:
            return None
        name = names[self.time] if isinstance(self.time, int) and self.time < len(names) else self.time
        if name not in names:
            raise DataError(f"time={self.time!r} is not a column of X; columns: {', '.join(map(str, names))}")
        if len(names) == 1:
            raise DataError(f"X has the column of times, {name!r}, alone: pass at least one ID column beside it")
        return name

    def _response(self, y, columns):
        """The response for the folds, the responses to fit by what is joined to a column's name, and their family."""
        y = column_or_1d(y)
        n = len(next(iter(columns.values())))
        if len(y) != n:
            raise DataError(f"y has {len(y)} values; expected {n}, one for each row of X")
        kind = type_of_target(y, input_name="y")
        family, classes = self.family, kind in ("binary", "multiclass")
        if isinstance(family, str) and family == "auto":
            family = "binomial" if classes else "gaussian"
        family = get_family(family)
        if family.name == "binomial" and classes:
            self.classes_, y = np.unique(y, return_inverse=True)
            if len(self.classes_) > _MOST_CLASSES:
                raise DataError(
                    f"y has {len(self.classes_)} values that read as classes (text or whole numbers), and at most "
                    f"{_MOST_CLASSES} are encoded one against the rest: pass family='gaussian' (or 'poisson') if they "
                    "are numbers, or join rare classes"
                )
            if len(self.classes_) > 2:
                return y, {f"_{label}": (y == k) * 1.0 for k, label in enumerate(self.classes_)}, family
            return y, {"": y.astype(np.float64)}, family
        if np.asarray(y).dtype.kind in "OUS" and classes:
            raise DataError(
                f"y holds classes, such as {np.asarray(y)[0]!r}, and the family {family.name} models numbers: pass "
                "family='binomial', which encodes each class against the rest"
            )
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        return y, {"": y}, family

    def _folds(self, columns, y, groups):
        """Pairs of positions (train, test); no row is in two tests."""
        if self._time_name is not None:
            return list(_blocks_of_time(columns[self._time_name], self._time_name, self.cv))
        stratified = hasattr(self, "classes_")
        splitter: Any = check_cv(self.cv, y, classifier=stratified, shuffle=True, random_state=self.random_state)
        folds = list(splitter.split(np.zeros((len(y), 1)), y, groups))
        if np.bincount(np.concatenate([test for _, test in folds])).max() > 1:
            raise DataError(
                f"cv={self.cv!r} holds some rows out twice, so that their features are not defined: use a splitter "
                "whose test sets do not overlap"
            )
        return folds


def _features(names, effects: GroupEffects, codes: np.ndarray) -> np.ndarray:
    """Columns (m, features) for levels `codes` (m,), -1 for one that is not known."""
    known = codes >= 0
    at = np.where(known, codes, 0)
    values = {
        "mean": lambda: np.where(known, effects.mean[at], 0.0),
        "sd": lambda: np.where(known, effects.sd[at], effects.tau),
        "reliability": lambda: np.where(known, effects.reliability[at], 0.0),
        "log_count": lambda: np.where(known, np.log1p(effects.n[at]), 0.0),
    }
    return np.stack([values[name]() for name in names], axis=1)


def _determined(y, codes, counts) -> bool:
    """Whether the responses of every ID are all alike; y (n,), codes (n,), counts (G,)."""
    first = np.zeros(len(counts))
    first[codes] = y
    return bool((first[codes] == y).all())


def _own_means(y, codes, counts) -> GroupEffects:
    """The limit of a Gaussian fit without residual variance."""
    seen = counts > 0
    mean = np.zeros(len(counts))
    mean[codes] = y
    centre, tau = mean[seen].mean(), float(mean[seen].std())
    return GroupEffects(np.where(seen, mean - centre, 0.0), np.where(seen, 0.0, tau), 1.0 * seen, counts, tau)


def _blocks_of_time(values, name, cv):
    """Blocks of about equal size in order of time, equal times together; each is held out from the earlier ones."""
    if not isinstance(cv, int) or cv < 1:
        raise DataError(f"with time={name!r}, cv must be a whole number of blocks to hold out; found {cv!r}")
    loaded, n = open_table({_Y: values}).load([_Y])
    column = loaded[_Y]
    if column.kind not in ("number", "time") or (column.missing is not None and column.missing.any()):
        raise DataError(f"the column of times {name!r} must hold numbers or dates, none of them missing")
    order = np.argsort(column.values, kind="stable")
    starts = column.values[order[[n * k // (cv + 1) for k in range(1, cv + 1)]]]
    starts = np.unique(starts)
    block = np.searchsorted(starts, column.values, side="right")
    for k in range(1, len(starts) + 1):
        yield np.flatnonzero(block < k), np.flatnonzero(block == k)
