"""Reference distributions of likelihood ratios where the smaller model is itself at the end of a parameter's range.

A variance that the smaller model estimates as zero may be zero. Then both models' likelihoods are maximised over cones:
that of the smaller one, C0, of covariances that may grow from zero there, and that of the larger one, C1, which also
has what is added. With Z ~ N(0, I^-1), I the information on all of these entries, the likelihood ratio is

    |projection of Z onto C1|^2 - |projection of Z onto C0|^2

in the metric of I. Near a covariance matrix with null space V the cone is of changes H with V'HV positive
semi-definite, H free otherwise; added covariances of effects that vary already are free. Its tail is averaged over
directions of Z, as in `inference.boundary`.

If the variance is positive and only its estimate is zero, the reference of `inference.boundary` holds; between the two
it depends on how large the variance is.

References
----------
Self & Liang (1987), JASA 82, 605, theorem 3. Shapiro (1988), Int. Stat. Rev. 56, 49.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxglmm.inference.boundary import Component, Reference, draws, projected, tail
from jaxglmm.inference.wald import chi2_p


_NULL = 1e-8  # eigenvalue of a covariance matrix, relative to the largest, that is none


@dataclass(frozen=True)
class Cone:
    """A positive semi-definite matrix of changes.

    Attributes
    ----------
    entries : list of Component
        Its lower triangle by columns.
    size : int
    zeros : tuple of int
        How many of its first effects the smaller model has too, at zero: sets of effects that covary there.
    """

    entries: list[Component]
    size: int
    zeros: tuple[int, ...]


def split(codes, z, old: int, before) -> tuple[list[Component], list[Component], Cone]:
    """Entries of a covariance matrix of the larger model: those that are new and inside, those of both, and the cone.

    Parameters
    ----------
    codes : int (n,)
    z : (S, n)
        Columns of its effects, those of the smaller model first.
    old : int
        How many these are.
    before : list of (indices, (S', S'))
        Sets of old effects that covary in the smaller model, with their covariance there.
    """
    varying, null, zeros = [], [], []  # columns, with the number of their set
    for k, (at, covariance) in enumerate(before):
        unit = np.sqrt(np.mean(np.square(z[at]), 1))
        values, vectors = np.linalg.eigh(covariance * np.outer(unit, unit))
        columns = vectors.T @ (z[at] / unit[:, None])
        none = values <= _NULL * max(values[-1], np.finfo(float).tiny)
        varying += [(k, column) for column in columns[~none]]
        null += [(k, column) for column in columns[none]]
        zeros.append(int(none.sum()))
    cone = null + [(None, column) for column in z[old:]]
    inside, both = [], []
    for i, (k, one) in enumerate(varying):
        for j, other in [*varying[i:], *cone]:
            (both if j == k else inside).append(Component(codes, one, one if other is one else other))
    entries = [Component(codes, cone[c][1], cone[r][1]) for c in range(len(cone)) for r in range(c, len(cone))]
    return inside, both, Cone(entries, len(cone), tuple(k for k in zeros if k))


def beside_zeros(statistic: float, free: int, inside: int, cones: Sequence[Cone], information: np.ndarray) -> Reference:
    """The p-value of a likelihood ratio at a smaller model with variances at zero.

    Parameters
    ----------
    statistic : float
    free : int
        Added fixed effects, of which the information on variances is independent.
    inside : int
        Added entries that are free to move either way: the first ones of the information.
    cones : sequence of Cone
    information : (d, d)
        On these and the cones' entries, given all other parameters.
    """
    cones = [cone for cone in cones if cone.size]
    count = sum(sum(cone.zeros) for cone in cones)
    said = f"{count} variance{'s' if count > 1 else ''} of the smaller model at zero"
    sizes, first, place = [], [], inside  # of the smaller model's cones, and where their entries are
    for cone in cones:
        of = [(r, c) for c in range(cone.size) for r in range(c, cone.size)]
        begin = 0
        for k in cone.zeros:
            first += [place + i for i, (r, c) in enumerate(of) if begin <= min(r, c) and max(r, c) < begin + k]
            begin, sizes = begin + k, [*sizes, k]
        place += len(of)
    if len(first) == len(information):
        return Reference(chi2_p(statistic, free), f"chi2({free}): {said} in both")
    if statistic <= 0:
        return Reference(1.0, f"chi-bar-squared: {said}")
    g, Z, unit, rest = draws(information, [1] * inside + [cone.size for cone in cones], free)
    given = unit[inside:, inside:] - unit[inside:, :inside] @ np.linalg.solve(
        unit[:inside, :inside], unit[:inside, inside:]
    )
    x = projected(Z[inside:], given, [cone.size for cone in cones])
    larger = np.square(g).sum(0) - np.einsum("an,ab,bn->n", x - Z[inside:], given, x - Z[inside:])
    smaller = 0.0
    if first:
        own = unit[np.ix_(first, first)]
        y = projected(np.linalg.solve(own, unit[first] @ Z), own, sizes)
        smaller = np.einsum("an,ab,bn->n", y, own, y)
    p = tail(statistic, free + len(information), rest + np.maximum(larger - smaller, 0), rest + np.square(g).sum(0))
    return Reference(p, f"chi-bar-squared of {free + len(information)}, simulated: {said}")
