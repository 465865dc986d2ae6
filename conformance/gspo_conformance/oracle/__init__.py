"""The oracle: what every operation of the suite must answer, to 50 digits, with the scale of its rounding errors.

Scalar loops in mpmath, written from the text of the specification; nothing of the implementation is imported.

    from gspo_conformance.oracle import truth

    found = truth("policy_loss", {"objective": {...}}, {"logp": [[...]], "old_logp": [[...]], "advantages": [...], "mask": [[...]]})
    found.outputs["gradient"].value, found.outputs["gradient"].scale, found.kink_margin

`truth` answers for every operation; `evaluate` for a loss, with intermediate quantities; `evaluate_step` for the parts of
a step. `differentiate` is a second opinion on gradients, `verify` and `verify_gradient` compare the two. Each takes `digits`.
"""

from .differences import Disagreement, along, differentiate, verify, verify_gradient
from .evaluate import Result, evaluate, evaluate_step
from .operations import OUTPUTS, Truth, truth
from .scales import Output

__all__ = [
    "OUTPUTS",
    "Disagreement",
    "Output",
    "Result",
    "Truth",
    "along",
    "differentiate",
    "evaluate",
    "evaluate_step",
    "truth",
    "verify",
    "verify_gradient",
]
