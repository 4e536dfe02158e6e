"""What goes wrong, as types a caller can catch; every message names the culprit and the remedy."""

# How what is said of a search that did not end begins.
UNFINISHED = "the optimiser stopped"


class DataError(ValueError):
    """The data cannot be used as asked: a column, a row or an argument is at fault."""


class FormulaError(ValueError):
    """The formula cannot be read, or says something that has no meaning for the data."""


class NotYetError(DataError):
    """The request is understood, but this version cannot do it."""


class ColumnsError(DataError):
    """The fixed-effect columns have no unique estimate: constant, collinear, or more than the rows."""


class ExactFitError(DataError):
    """The model fits a response exactly, or a Gaussian one has one value: the likelihood grows without bound."""


class ConvergenceError(RuntimeError):
    """The optimiser stopped before its certificate held."""


class SeparationError(ConvergenceError):
    """A combination of columns predicts the response perfectly, so its coefficient is infinite."""


class DataWarning(UserWarning):
    """The data were used, after a change that the caller should know of."""


class ConvergenceWarning(UserWarning):
    """The fit stands, with a property that the caller should know of."""


def reason_of(check) -> str | None:
    """What `check()` says against data; None where it says nothing."""
    try:
        check()
    except DataError as error:
        return str(error)
    return None
