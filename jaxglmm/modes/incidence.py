"""Where the levels of the factor with the most of them meet the effects of the other factors: sparse matrices."""

from functools import cached_property

import numpy as np
from scipy.sparse import csr_array, hstack

from jaxglmm.design.groups import round_up
from jaxglmm.design.pairs import padded
from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import matrix
from jaxglmm.ops.memory import need_int32
from jaxglmm.ops.pairs import sampled_product
from jaxglmm.ops.programs import program


class Incidence:
    """Matrices (G S, r) whose rows are the effects of the first factor, and whose columns are those of all others.

    They are given as blocks (P, S, S') by the other factor, one for each pair of `RowDesign.pairs`.

    Attributes
    ----------
    first : int
        The factor with the most levels.
    rest : tuple of int
        The others, in the order of elimination.
    begins : dict of int to int
        First column of each of the others.
    order : int
        Number of columns, r.
    """

    def __init__(self, design: RowDesign):
        self.design, self.first, self.rest = design, design.order[0], design.order[1:]
        sizes = [design.terms[t].n_levels * design.terms[t].n_effects for t in self.rest]
        self.begins = dict(zip(self.rest, np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist(), strict=True))
        self.order = sum(sizes)

    def joined(self, values) -> csr_array:
        """The sparse matrix of these blocks."""
        parts = [matrix(self.design, (self.first, t), values[t]).tocsr() for t in self.rest]
        return parts[0] if len(parts) == 1 else csr_array(hstack(parts, format="csr"))

    @cached_property
    def _entries(self):
        """Row pointers and columns, padded, for how many levels meet is the data's own; which number each entry is."""
        numbers, at = {}, 1  # from 1, so that none is zero
        for t in self.rest:
            shape = self._shape(t)
            numbers[t] = np.arange(at, at + np.prod(shape), dtype=float).reshape(shape)
            at += numbers[t].size
        E = self.joined(numbers)
        need_int32("pairs of effects", round_up(E.nnz))
        columns = padded(E.indices.astype(np.int32), round_up(E.nnz))
        return E.indptr.astype(np.int32), columns, E.data.astype(np.intp) - 1

    def _shape(self, t):
        terms = self.design.terms
        return len(self.design.pairs[self.first, t]), terms[self.first].n_effects, terms[t].n_effects

    def sampled(self, values, R) -> dict[int, np.ndarray]:
        """Blocks of E R where E has entries.

        Parameters
        ----------
        values : dict of int to (P, S, S')
            The blocks of E.
        R : (r, r)
            Symmetric, its upper triangle.
        """
        start, columns, number = self._entries
        entries = np.concatenate([values[t].ravel() for t in self.rest])[number]
        found = np.asarray(_sampled(padded(entries, len(columns)), start, columns, R))[: len(number)]
        assert found.dtype == np.float64, "asked outside of `computing()`, which rounds to float32"
        flat = np.empty(len(number))
        flat[number] = found
        ends = np.cumsum([values[t].size for t in self.rest])
        return {t: part.reshape(self._shape(t)) for t, part in zip(self.rest, np.split(flat, ends[:-1]), strict=True)}


_sampled = program()(sampled_product)
