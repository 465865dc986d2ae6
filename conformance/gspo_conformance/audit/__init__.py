"""What a real run computed, held against what it says it computes: `gspo audit`.

    found = audit_trace("trace")
    found.verdict, found.findings, found.ledger.missing

`shards.py` reads the files of a trace, trusting nothing; `trace.py` is the trace as its optimiser steps; `claim.py` what the run
says it computes; `recomputed.py`, `steps.py` and `advantages.py` recompute it with `exact.py`; what explains a loss is found by `suspects.py`, which asks
mutants, `variants.py`, `replaced.py`, `nearby.py`, `factors.py`, `fitted.py`, `paired.py` and `implied.py`, what it is only like by `likeness.py`, what explains a metric by
`reported.py`, a step by `together.py`, and advantages by `shaped.py`, `rearranged.py` and `handed.py`;
`evidence.py` and `coverage.py` what the log-probabilities and the files say of themselves; `judgement.py` puts it together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .trace import Part, Step, Tokens, Trace, read_trace

if TYPE_CHECKING:
    from .judgement import Audit

__all__ = ["Part", "Step", "Tokens", "Trace", "audit_trace", "read_trace"]


def audit_trace(
    path: str | os.PathLike[str],
    *,
    objective: str | None = None,
    config: list[str] | None = None,
    dialect: str | None = None,
) -> Audit:
    """The audit of the trace in a folder, under the claim that the options of `gspo audit` name, else under its own."""
    # Not at the top: the noise model, which the judgement asks, reads traces.
    from .claim import claim_of
    from .judgement import audit, with_noise

    trace = read_trace(Path(path))
    return with_noise(audit(trace, claim_of(trace, objective=objective, config=config, dialect=dialect)))
