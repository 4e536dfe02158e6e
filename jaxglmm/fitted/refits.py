"""A fit's data fitted many times over."""

from jaxglmm.arguments import choice, flag, optional, seed as seeds, takes, whole


class Refits:
    """Methods of `Fit` that fit its rows again: as replicates, without some of them, from other starts."""

    @takes(n=whole(2, 10**7), kind=choice("parametric", "cases"), seed=seeds, progress=optional(flag))
    def bootstrap(self, n: int = 1000, kind: str = "parametric", *, seed=None, progress=None):
        """Fit replicates of the data, all together.

        Parameters
        ----------
        n : int
            Number of replicates.
        kind : {"parametric", "cases"}
            "parametric": responses simulated from the fit, random effects drawn anew. "cases": as many groups as there
            are, drawn with replacement, each draw a group of its own; rows, without random effects.
        seed : int or numpy.random.Generator, optional
        progress : bool, optional

        Returns
        -------
        Replicates
            `table()` has bias, standard errors and percentile intervals.

        Raises
        ------
        DataError, NotYetError
            For fits that were loaded, and for those with several grouping factors, held parameters or penalties.
        """
        from jaxglmm.inference.bootstrap import bootstrap

        return bootstrap(self, n, kind, seed, progress)

    @takes(progress=optional(flag))
    def jackknife(self, *, progress=None):
        """Fit the data without each of the groups in turn (each row, without random effects), all together.

        Returns
        -------
        Replicates
            `table()` has bias, standard errors and normal intervals.
        """
        from jaxglmm.inference.bootstrap import jackknife

        return jackknife(self, progress)

    @takes(by=choice("rows", "groups"), seed=seeds)
    def cross_validate(self, folds=5, by: str = "rows", *, seed=None):
        """Fit the data without each of some folds, all together, and tell the density of what was left out.

        Parameters
        ----------
        folds : int or (n,)
            Their number, drawn at random; or the fold of each row of the fit.
        by : {"rows", "groups"}
            What is drawn: rows, whose groups are known from their other rows; or whole groups, which then are new.
        seed : int or numpy.random.Generator, optional

        Returns
        -------
        CrossValidation
            `total` is the log predictive density of all rows; `table()` has each fold's.

        Raises
        ------
        DataError, NotYetError
            As `bootstrap`.
        """
        from jaxglmm.inference.cross_validation import cross_validate

        return cross_validate(self, folds, by, seed)

    @takes(n=whole(1, 10**6), seed=seeds)
    def multistart(self, n: int = 20, *, seed=None):
        """Climb from n random places at once, to see whether the fit's optimum is the best one.

        Parameters
        ----------
        n : int
        seed : int or numpy.random.Generator, optional

        Returns
        -------
        Starts
            `is_best`, `best`, and `table()` of where each has ended.

        Raises
        ------
        DataError, NotYetError
            As `bootstrap`, and for fits by REML.

        Warns
        -----
        ConvergenceWarning
            Where the best start lies above the fit, and more nodes change by how much.
        """
        from jaxglmm.inference.starts import multistart

        return multistart(self, n, seed)
