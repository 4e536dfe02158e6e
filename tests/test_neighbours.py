"""What a group gets does not depend on the groups that share a vector with it: the same bits, whatever they are."""

import numpy as np
import pytest
from test_nested import FAMILIES, PARENTS, Plain, arrays

from jaxglmm.design.design import make_design
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.ops import lattices
from jaxglmm.ops.nested import fixed_part, nested_pass
from jaxglmm.optimise.node_ladder import padded_nodes


pytestmark = pytest.mark.native

NAMES = ("logit", "probit", "cloglog", "poisson", "negativebinomial", "gamma")
BETA, LOG_PHI, SD = np.array([0.2, -0.3, 0.1]), 0.3, 1.2


def far_starts(groups):
    """Two sets of modes to begin at: zeros, and those of the odd groups far away, so that their search is longer."""
    odd = np.arange(groups) % 2 == 1
    return np.zeros(groups), np.where(odd, 4.0 * np.sin(np.arange(groups)), 0.0), ~odd


@pytest.mark.parametrize("name", NAMES)
def test_the_nested_pass(x64, name):
    family = FAMILIES[name]
    design = Plain(family, arrays(family)).nested
    eta = fixed_part(design.tiles, BETA)
    near, far, same = far_starts(len(design.parents))
    one, two = (
        nested_pass(
            family, design.tiles, design.group, design.parents, eta, start, np.zeros((3, PARENTS)),
            np.array([SD, LOG_PHI]), columns=False,
        )
        for start in (near, far)
    )  # fmt: skip
    np.testing.assert_array_equal(one.modes[same], two.modes[same])
    np.testing.assert_array_equal(one.information[same], two.information[same])
    np.testing.assert_allclose(one.modes, two.modes, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("effects", [1, 2])
def test_the_fused_pass(x64, name, effects):
    family = FAMILIES[name]
    a = arrays(family)
    z = np.stack([np.ones(len(a.y)), a.X[:, 1]][:effects])
    design, layout = make_design(a.y, a.X, weights=a.weights, offset=a.offset, codes=a.fine, z=z)
    factor = np.diag([SD, 0.5][:effects])[np.tril_indices(effects)]
    psi = np.concatenate([BETA, factor, [LOG_PHI if family.dispersion_name else 0.0]])
    near, far, same = far_starts(a.fine.max() + 1)
    group_of_slot = np.zeros(layout.n_slots, int)
    group_of_slot[layout.slot] = a.fine
    nodes, found = padded_nodes(1, effects), []
    for start in (near, far):
        e = evaluate(family, design, nodes, psi, np.tile(start[group_of_slot], (effects, 1)))
        found.append(np.asarray(e.modes))
    one, two = (modes[:, layout.slot][:, same[a.fine]] for modes in found)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_posteriors_on_lattices(x64, name):
    family = FAMILIES[name]
    a = arrays(family)
    groups = np.argsort(np.bincount(a.fine), kind="stable")
    rows = lattices.sort_rows(a.fine, a.y, a.weights, a.X @ BETA + a.offset, np.ones(len(a.y)), len(groups))
    log_phi = LOG_PHI if family.dispersion_name else 0.0
    among = lattices.posteriors(family, log_phi, rows, groups, 0.0, SD, None, 7.0)
    for place in range(0, len(groups), 4):
        alone = lattices.posteriors(family, log_phi, rows, groups[[place]], 0.0, SD, None, 7.0)
        for field in ("mode", "curvature_sd", "mean", "variance", "first", "step"):
            assert getattr(alone, field)[0] == getattr(among, field)[place], field
        width = min(alone.weights.shape[1], among.weights.shape[1])
        np.testing.assert_array_equal(alone.weights[0, :width], among.weights[place, :width])
