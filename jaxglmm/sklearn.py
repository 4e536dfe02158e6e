"""scikit-learn estimators: mixed models whose grouping factors are columns of X, and the encoder of IDs."""

import warnings
from dataclasses import replace
from typing import Any

import narwhals as nw
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    assert_all_finite,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from jaxglmm.arguments import choice, refuse
from jaxglmm.encoder import RandomEffectEncoder as RandomEffectEncoder
from jaxglmm.errors import (
    ColumnsError,
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    ExactFitError,
    SeparationError,
)
from jaxglmm.exact import fit_exactly, fit_exactly_by_ridge
from jaxglmm.fitted.effects import Kept
from jaxglmm.fitted.fit import Fit
from jaxglmm.fitting import fit as fit_formula
from jaxglmm.model.families import Binomial, get_family
from jaxglmm.model.penalties import Ridge


# Where columns have no estimate without a penalty; what the data determine well moves by about this share of itself.
_LITTLE = 1e-4


class _GLMM(BaseEstimator):
    """What the two estimators share: columns of X as a formula's terms."""

    def __init__(
        self, groups=None, *, family="gaussian", method="auto", n_agq=None, penalty=None, theta=None,
        effects="conditional", new_levels="integrate",
    ):  # fmt: skip
        self.groups = groups
        self.family = family
        self.method = method
        self.n_agq = n_agq
        self.penalty = penalty
        self.theta = theta
        self.effects = effects
        self.new_levels = new_levels

    def _checked(self, X, y, weights, *, numeric):
        """Columns of X, y and weights as far as they can be judged without the model."""
        choice("conditional", "mode", "marginal", "population")("effects", self.effects)
        choice("integrate", "population", "error")("new_levels", self.new_levels)
        table = self._table(X, reset=True)
        if y is None:
            raise DataError("requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        if numeric:
            if np.asarray(y).dtype.kind in "OUS" and not _are_numbers(y):
                raise DataError(
                    f"y holds classes, such as {np.asarray(y)[0]!r}, and GLMMRegressor models numbers; GLMMClassifier "
                    "takes two classes"
                )
            y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        else:
            assert_all_finite(y, input_name="y")
        check_consistent_length(*table.values(), y)
        if weights is not None:
            weights = _check_sample_weight(weights, y, ensure_non_negative=True, dtype=np.float64)
            if not weights.all():
                kept = np.flatnonzero(weights)
                table, y = _rows(table, y, kept)
                weights = weights[kept]
        return table, y, weights

    def _fit_formula(self, table, y, family, weights):
        grouping = self._grouping(tuple(table))
        taken = [name for name in table if isinstance(name, str)]
        self._names = {name: _safe(name, j, taken) for j, name in enumerate(table)}
        known, response = set(self._names.values()), "y"
        while response in known:
            response += "_"
        fixed = [f"`{self._names[name]}`" for name in table if name not in grouping]
        bars = [f"(1 | `{self._names[name]}`)" for name in grouping]
        columns = {self._names[name]: values for name, values in table.items()}
        formula, data = f"{response} ~ {' + '.join(['1', *fixed, *bars])}", columns | {response: y}
        options = {"method": self.method, "n_agq": self.n_agq, "theta": self.theta, "weights": weights}
        try:
            fit = fit_formula(formula, data, family=family, penalty=self.penalty, **options)
        except ExactFitError as error:
            if self.penalty is not None or family.name != "gaussian":
                raise
            _warn(
                f"the model fits the response exactly ({error}): fitted by least squares, sigma at its rounding floor"
            )
            fit = fit_exactly(formula, data, family, theta=self.theta, weights=weights)
        except (ColumnsError, SeparationError) as error:
            if self.penalty is not None:
                raise
            _warn(
                f"the fixed effects have no unique finite estimate ({error}): fitted with a ridge penalty of "
                f"{_LITTLE:g} on standardised columns; pass penalty=jg.Ridge(...) to choose another"
            )
            ridge = Ridge(_LITTLE, standardize=True)
            try:
                fit = fit_formula(formula, data, family=family, penalty=ridge, **options)
            except ConvergenceError:
                if family.name != "gaussian" or bars:
                    raise
                fit = fit_exactly_by_ridge(formula, data, family, ridge, weights=weights)
        if fit.n_dropped:
            raise DataError(
                f"{fit.n_dropped} rows of X have missing values ({fit.state.dropped_by}): impute them, or leave these "
                "rows out"
            )
        # Without the training rows, as a pipeline is copied and pickled, but with what predictions average over.
        one, several = len(fit.groups) == 1 and fit.has_rows, len(fit.groups) > 1 and fit.has_rows
        kept = Kept({}, None, fit._joint() if several else None, fit._rule() if one else None)
        self.fit_ = Fit(replace(fit.state, posteriors=tuple(fit.state.posteriors)), kept=kept)
        self.n_iter_ = fit.convergence.iterations

    def _predict(self, X):
        check_is_fitted(self)
        table = self._table(X, reset=False)
        safe = list(self._names.values())  # of an array, whose columns have no names, by their places
        columns = {self._names.get(name, safe[k]): values for k, (name, values) in enumerate(table.items())}
        return self.fit_.predict(columns, effects=self.effects, new_levels=self.new_levels)

    def _table(self, X, reset):
        """Columns of X by the caller's names, positions for arrays."""
        frame = nw.from_native(X, eager_only=True, pass_through=True)
        if isinstance(frame, nw.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return {name: frame.get_column(name).to_native() for name in frame.columns}
        values: Any = validate_data(self, X, reset=reset, dtype="numeric", ensure_min_samples=2 if reset else 1)
        return {j: values[:, j] for j in range(values.shape[1])}

    def _grouping(self, names):
        groups = [] if self.groups is None else [self.groups] if isinstance(self.groups, str | int) else self.groups
        if not isinstance(groups, list | tuple | np.ndarray) or np.ndim(groups) != 1:
            refuse("groups", "a column of X, or a list of columns", self.groups)
        unknown = [g for g in groups if not isinstance(g, str | int | np.integer) or g not in names]
        if unknown:
            raise DataError(
                f"groups={self.groups!r}: {unknown[0]!r} is not a column of X; expected names of columns, or positions "
                f"for an array; columns: {', '.join(map(str, names))}"
            )
        return list(groups)


def _are_numbers(y) -> bool:
    try:
        np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _warn(message):
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


def _rows(table, y, rows):
    """Some rows of a table, whose columns may be of any kind, and of y."""
    take = lambda v: v[rows] if isinstance(v, np.ndarray) else nw.from_native(v, series_only=True)[rows].to_native()
    return {name: take(values) for name, values in table.items()}, y[rows]


def _safe(name, position, taken) -> str:
    """A name that formulas can hold between backticks: the caller's own where it is text without one."""
    if isinstance(name, str) and name and name == name.strip() and "`" not in name:
        return name
    new = f"x{position}"
    return new if new not in taken else f"column_{position}"


class GLMMRegressor(RegressorMixin, _GLMM):
    """Generalized linear mixed model of a numeric response, with grouping factors among the columns of X.

    Every other column of X is a fixed effect (text and categories as factors). The full result, with standard errors
    and group effects, is in `fit_`.

    Parameters
    ----------
    groups : str, int or list of them, optional
        Columns of X, by name or, for an array, position, that have a random intercept for each value. None fits the
        model without random effects.
    family : str or family
        As in `jaxglmm.fit`; not binomial.
    method, n_agq, theta
        As in `jaxglmm.fit`.
    penalty : ElasticNet, optional
        Of the fixed effects. Without one, columns that are constant, collinear or more than the rows get a small ridge
        penalty, with a warning.
    effects, new_levels : str
        Of `predict`, as in `Fit.predict`: by default the posterior mean for groups that the fit has seen, averaged
        over the distribution of groups for others.

    Attributes
    ----------
    fit_ : Fit
        Without the training rows.
    n_iter_ : int
    n_features_in_, feature_names_in_
    """

    def fit(self, X, y, sample_weight=None):
        """Fit.

        Parameters
        ----------
        X : table or array (n, columns)
        y : (n,)
        sample_weight : (n,), optional
            How often a row counts. With `groups` and Gaussian responses whole numbers; `jaxglmm.fit` has weights that
            divide the residual variance.

        Raises
        ------
        DataError, ConvergenceError
        """
        family = get_family(self.family)
        if family.name == "binomial":
            raise DataError("family='binomial' is GLMMClassifier's; expected a family of numbers, such as 'gaussian'")
        table, y, weights = self._checked(X, y, sample_weight, numeric=True)
        if weights is not None and family.name == "gaussian" and self._grouping(tuple(table)):
            if (weights != np.round(weights)).any():
                raise DataError(
                    f"sample_weight {weights[weights != np.round(weights)][0]:g}: with groups and Gaussian responses a "
                    "row counts a whole number of times; jaxglmm.fit(weights=...) takes weights that divide the "
                    "residual variance"
                )
            table, y, weights = *_rows(table, y, np.repeat(np.arange(len(y)), weights.astype(int))), None
        self._fit_formula(table, y, family, weights)
        return self

    def predict(self, X):
        """Expected response of each row (n,)."""
        return self._predict(X)


class GLMMClassifier(ClassifierMixin, _GLMM):
    """Mixed model of a response with two classes, with grouping factors among the columns of X.

    Parameters and attributes are those of `GLMMRegressor`; `family` is "binomial" or a `Binomial` with another link.

    Attributes
    ----------
    classes_ : (2,)
        The probability of the second is modelled.
    """

    def __init__(
        self, groups=None, *, family="binomial", method="auto", n_agq=None, penalty=None, theta=None,
        effects="conditional", new_levels="integrate",
    ):  # fmt: skip
        super().__init__(
            groups, family=family, method=method, n_agq=n_agq, penalty=penalty, theta=theta, effects=effects,
            new_levels=new_levels,
        )  # fmt: skip

    def fit(self, X, y, sample_weight=None):
        """Fit.

        Parameters
        ----------
        X : table or array (n, columns)
        y : (n,)
            Of two classes.
        sample_weight : (n,), optional
            Whole numbers: how often a row counts.

        Raises
        ------
        DataError, ConvergenceError
        """
        family = get_family(self.family)
        if not isinstance(family, Binomial):
            raise DataError(f"family must be binomial; found {family.name!r}; GLMMRegressor has the others")
        table, y, weights = self._checked(X, y, sample_weight, numeric=False)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise DataError(
                f"Only binary classification is supported. The type of the target is {kind}. "
                f"{len(self.classes_)} classes: wrap it in sklearn.multiclass.OneVsRestClassifier, or join some"
            )
        if len(np.unique(codes if weights is None else codes[weights > 0])) < 2:
            raise DataError("y has one class only in the rows that count; expected two")
        self._fit_formula(table, codes.astype(np.float64), family, weights)
        return self

    def predict_proba(self, X):
        """Probability of each class, (n, 2)."""
        event = self._predict(X)
        return np.column_stack([1 - event, event])

    def decision_function(self, X):
        """Log odds of the second class, (n,)."""
        event = np.clip(self._predict(X), 1e-300, 1 - 1e-16)
        return np.log(event) - np.log1p(-event)

    def predict(self, X):
        """The more probable class of each row, (n,)."""
        second = self._predict(X) > 0.5
        return self.classes_[second.astype(int)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
