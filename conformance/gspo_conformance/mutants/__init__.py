"""Wrong implementations on purpose, each killed by a named vector: what the suite is measured with.

    from gspo_conformance.mutants import mutants, find
    find("aggregation.token-mean").run(case)

A mutant is a target: `gspo check mutant:aggregation.token-mean`. A new one is one class in `wrong/`.
"""

from .registry import Mutant, compose, find, mutants
from .whole import Reference

# What was seen elsewhere and cannot be a mutant: a target is a function of log-probabilities, masks and rewards.
ABSENT = {
    "another tokenisation or prompt for old and new log-probabilities": "it is in the inputs; unchanged weights must give a ratio of exactly 1, which `metrics.ratio_is_one` reports",
    "a wrong temperature in one of two scorings": "it is in the inputs too; `ratio.sampler-logp` is what it looks like here",
    "advantages or rewards that carry a gradient": "a target returns the derivative with respect to `logp` alone; backends test the others",
    "duplicate prompts merged into one group": "groups are ids; whoever makes the ids decides",
    "a loss per response `[B, 1]` times a mask `[B, T]`": "for one value per response it is `aggregation.token-mean`, to the last bit",
    "metrics averaged over ranks": "a step has no metrics; `distribution.loss-of-means` is the same slip on the loss",
}

__all__ = ["ABSENT", "Mutant", "Reference", "compose", "find", "mutants"]
