"""Laplace's approximation to the marginal likelihood as a pure function of parameters and design."""

import equinox as eqx

from jaxglmm.arguments import a_family
from jaxglmm.design.design import Design
from jaxglmm.model.families import AbstractFamily
from jaxglmm.objectives.params import Params
from jaxglmm.objectives.quadrature import AdaptiveQuadrature


class LaplaceMarginal(eqx.Module):
    """Marginal log-likelihood by Laplace's approximation.

    `LaplaceMarginal(family)(params, design)` is the scalar J(beta, u^) - (1/2) log det H + constants, with u^ the
    conditional modes, J the joint likelihood and H = I + Lambda' Z'WZ Lambda with the observed information W. It can
    be jitted, vmapped, and differentiated to any order in the parameters and in the design's arrays. Exact for
    Gaussian responses with the identity link.

    Attributes
    ----------
    family : AbstractFamily

    References
    ----------
    Tierney & Kadane (1986), JASA 81, 82. Breslow & Clayton (1993), JASA 88, 9, eq. 3.
    """

    family: AbstractFamily

    def __check_init__(self):
        a_family("family", self.family)

    def __call__(self, params: Params, design: Design):
        return AdaptiveQuadrature(self.family, 1)(params, design)
