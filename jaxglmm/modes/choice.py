"""Which solver for the modes of several factors a design gets."""

from jaxglmm.design.rows import RowDesign
from jaxglmm.errors import DataError
from jaxglmm.modes.solver import AbstractSolver


# Remaining effects after the largest factor is eliminated up to which the rest is a dense matrix.
DENSE_LIMIT = 10_000
# From here on conjugate gradients are cheaper than another factorisation.
_COSTLY = 500
SOLVERS = ("auto", "separable", "schur", "krylov")


def choose_solver(design: RowDesign, wanted: str = "auto") -> AbstractSolver:
    """The solver that the structure calls for, or the one wanted.

    Parameters
    ----------
    design : RowDesign
    wanted : {"auto", "separable", "schur", "krylov"}

    Raises
    ------
    DataError
        For a solver that the data do not allow.
    """
    from jaxglmm.modes.krylov import Krylov
    from jaxglmm.modes.nested import Nested
    from jaxglmm.modes.schur import Schur

    sizes = [design.terms[t].n_levels * design.terms[t].n_effects for t in design.order]
    rest = sum(sizes[1:])
    asked = "" if wanted == "auto" else "; asked for by solver="
    if wanted == "separable" and not design.nested:
        raise DataError(
            "solver='separable' needs factors each of which is nested in the next, and these cross: use 'schur' or "
            "'auto'"
        )
    if wanted == "separable" or (wanted == "auto" and design.nested):
        return Nested(reason="each factor is nested in the next: levels are eliminated one factor at a time" + asked)
    if wanted == "schur" and rest > 4 * DENSE_LIMIT:
        raise DataError(
            f"solver='schur' would factor a dense matrix of order {rest:,}; at most {4 * DENSE_LIMIT:,} is possible: "
            "use 'krylov' or 'auto'"
        )
    if wanted == "schur" or (wanted == "auto" and rest <= DENSE_LIMIT):
        reason = (
            f"crossed factors: the largest ({sizes[0]:,} effects) is eliminated and the other {rest:,} effects are "
            "solved for by dense Cholesky"
        )
        return Schur(reason=reason + asked, helper=Krylov(reason="") if rest > _COSTLY else None)
    return Krylov(
        reason=f"crossed factors: beside the largest ({sizes[0]:,} effects) there are {rest:,} others, "
        + (f"more than the {DENSE_LIMIT:,} of a dense matrix" if wanted == "auto" else "solved for by iteration")
        + asked
    )
