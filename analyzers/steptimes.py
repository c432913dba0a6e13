"""Iterations whose time is known from measured kernels, and the iteration's coefficients that describe them best.

Owns the noun and the fit to it; who has such times hands them in. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analyzers.architecture import Architecture
from collectors.workload import Floats


@dataclass(frozen=True, slots=True)
class StepTimes:
    """(n,) each, one entry an iteration, in the words of ``IterationCost``."""

    decoding: Floats
    """Sequences that decode: D."""
    context: Floats
    """Tokens of their contexts together: C."""
    prefill: Floats
    """Prompt tokens computed: P."""
    products: Floats
    """Q: of each chunk, (tokens before it + half of it) times its tokens."""
    seconds: Floats

    def coefficients(self, expert_share: float) -> Floats:
        """(8,) in ``IterationCost``'s order: those that are nearest in relative error (least squares without negative ones: Lawson and
        Hanson 1974). A coefficient that no iteration asks for is 0."""
        import scipy  # only here: whoever names an accelerator does not wait for it

        tokens = self.decoding + self.prefill
        terms = np.stack(
            [
                np.ones_like(self.seconds),
                self.decoding,
                self.context,
                self.prefill,
                self.products,
                (self.prefill > 0).astype(np.float64),
                1.0 - (1.0 - expert_share) ** tokens,
            ],
            axis=1,
        )
        weighted = terms / self.seconds[:, None]
        largest = np.maximum(weighted.max(axis=0), 1e-300)
        found, _ = scipy.optimize.nnls(weighted / largest, np.ones(self.seconds.shape[0]))
        return np.array([*(found / largest), expert_share])


StepTimesSource = Callable[[Architecture, int, float, int], StepTimes | None]
"""(model, accelerators that share each layer, bytes of a weight, copies of the attention) to the times of one accelerator's kernels;
None where it does not know them."""
