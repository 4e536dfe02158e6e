"""scikit-learn's estimators."""

from jaxglmm.encoder import RandomEffectEncoder as RandomEffectEncoder
