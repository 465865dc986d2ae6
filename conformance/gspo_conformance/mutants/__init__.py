"""Wrong implementations on purpose, each killed by a named vector: what the suite is measured with.

    from gspo_conformance.mutants import mutants, find
    find("aggregation.token-mean").run(case)

A mutant is a target: `gspo check mutant:aggregation.token-mean`. A new one is one class in `wrong/`.
"""

from .registry import Mutant, compose, find, mutants
from .whole import Reference

__all__ = ["Mutant", "Reference", "compose", "find", "mutants"]
