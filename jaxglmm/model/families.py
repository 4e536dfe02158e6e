"""The response families by name."""

import difflib

from jaxglmm.errors import DataError
from jaxglmm.model.binomial import Binomial
from jaxglmm.model.continuous import Beta, Gamma, Gaussian
from jaxglmm.model.counts import NegativeBinomial, Poisson
from jaxglmm.model.family import AbstractFamily, Derivatives


__all__ = [
    "AbstractFamily",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Derivatives",
    "Gamma",
    "Gaussian",
    "NegativeBinomial",
    "Poisson",
    "family_from_json",
    "get_family",
]

Bernoulli = Binomial

_CLASSES = {cls.name: cls for cls in (Gaussian, Binomial, Poisson, NegativeBinomial, Gamma, Beta)}
_ALIASES = {
    "normal": "gaussian",
    "bernoulli": "binomial",
    "logistic": "binomial",
    "negative_binomial": "negativebinomial",
    "negbin": "negativebinomial",
    "nbinom": "negativebinomial",
    "nbinom2": "negativebinomial",
}


def get_family(family) -> AbstractFamily:
    """The family object for a name, a family class or a family object.

    Parameters
    ----------
    family : str, type or AbstractFamily
        Names are case-insensitive, with "-", "_" and blanks ignored: "gaussian", "binomial" ("bernoulli"), "poisson",
        "negativebinomial" ("negative_binomial", "nbinom2"), "gamma", "beta"; each with its default link.

    Raises
    ------
    DataError
        For a name that is no family, with the closest ones.
    """
    if isinstance(family, AbstractFamily):
        return family
    if isinstance(family, type) and issubclass(family, AbstractFamily):
        return family()  # pyright: ignore[reportCallIssue] (a final family needs no argument)
    names = ", ".join(_CLASSES)
    if not isinstance(family, str):
        raise DataError(f"family: found {family!r}, expected one of {names}, or a family such as jg.Binomial('probit')")
    known = {_plain(name): cls for name, cls in _CLASSES.items()}
    known |= {_plain(alias): _CLASSES[name] for alias, name in _ALIASES.items()}
    key = _plain(family)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {known[close[0]].name!r}?" if close else ""
        raise DataError(f"family: found {family!r}, expected one of {names}{hint}")
    return known[key]()


def family_from_json(saved: dict) -> AbstractFamily:
    """The family that `AbstractFamily.to_json` described."""
    if saved.get("name") not in _CLASSES:
        raise DataError(f"family: found {saved.get('name')!r}, expected one of {', '.join(_CLASSES)}")
    return _CLASSES[saved["name"]](link=saved["link"])


def _plain(name):
    return "".join(ch for ch in name.lower() if ch.isalnum())
