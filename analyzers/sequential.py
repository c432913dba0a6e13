"""The one formula of the tests that may be looked at after each window. Pure arithmetic.

Source: Lindon, Ham, Tingley and Bojinov 2022, "Anytime-Valid Linear Models".
"""

from __future__ import annotations

import math

#: A residual sum of squares below this is none.
_LEAST = 1e-18


def log_bayes_factor(own: float, shared: float, whole: float, freedom: int, precision: float) -> float:
    """Logarithm of the Bayes factor for one more term z in a linear model of y, both less what the other terms explain of them.

    own: z'z. shared: z'y. whole: y'y. freedom: observations less the other terms. precision: of the term's size, in the residual's
    standard deviations, before anything is seen. With f the precision: sqrt(f / (f + z'z)) ((y'y - (z'y)^2 / (f + z'z)) / y'y)^(-freedom / 2).
    """
    whole = max(whole, _LEAST)
    left = max(whole - shared**2 / (precision + own), _LEAST)
    return 0.5 * math.log(precision / (precision + own)) - 0.5 * freedom * math.log(left / whole)
