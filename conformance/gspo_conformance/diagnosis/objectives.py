"""Another objective than the one that was asked for: a loss that is GRPO's, or CISPO's, under the name of GSPO."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any, NamedTuple

from gspo_core import Aggregation, Cispo, Clip, Gmpo, Objective, Reinforce, Sapo, Vespo
from gspo_core.objective import PAPER_CLIP
from gspo_core.surrogate import Surrogate

from ..mutants.registry import Mutant, find
from ..mutants.whole import Reference
from .constants import Unlisted


class Other(NamedTuple):
    """A ratio and a surrogate that people train with, in a word and in words."""

    name: str
    ratio: str
    surrogate: Surrogate
    told: str


UNBOUNDED = 1e30
OTHERS = (
    # One number for both sides, the baseline of the GSPO paper, DAPO.
    *(
        Other(f"grpo({low}, {high})", "token", Clip(low, high), "a ratio for every token, as in GRPO and PPO")
        for low, high in ((0.2, 0.2), (0.2, 0.27), (0.2, 0.28))
    ),
    Other("reinforce", "token", Reinforce(), "log π times A, without a ratio"),
    Other("token-weighted reinforce", "token", Cispo(high=UNBOUNDED), "sg[w] A log π, the ratio a weight alone"),
    Other("weighted reinforce", "sequence", Cispo(high=UNBOUNDED), "sg[s] A log π, the ratio a weight alone"),
    Other("cispo", "token", Cispo(), "sg[w] A log π, w held at 5"),
    Other("sequence cispo", "sequence", Cispo(PAPER_CLIP.low, PAPER_CLIP.high), "sg[clip(s)] A log π"),
    Other("sequence cispo, one-sided", "sequence", Cispo(high=PAPER_CLIP.high), "sg[min(s, 1 + high)] A log π"),
    Other("sapo", "token", Sapo(), "a soft gate on the ratio of each token"),
    Other("sequence sapo", "sequence", Sapo(), "a soft gate on s"),
    Other("gmpo", "token", Gmpo(), "tokens clipped, then their mean"),
    Other("vespo", "product", Vespo(), "a kernel of the product of the ratios"),
)  # fmt: skip
MODES = ("token_mean", "sequence_mean_token_sum")
WIDTH = "padded width"
PAPER = ("sequence", "gspo_token")


@cache
def objectives() -> tuple[Mutant, ...]:
    """The reference with each of them in place of the paper's objective, aggregated as is asked for or otherwise."""
    return tuple(_unlisted(other, mode) for other, mode in product(OTHERS, ("", *MODES, WIDTH)))


def _unlisted(other: Other, mode: str) -> Mutant:
    aggregation = Aggregation(mode) if mode in MODES else None
    axes = Objective(other.ratio, other.surrogate, aggregation or Aggregation()).to_dict()
    changed = {axis: axes[axis] for axis in ("ratio", "surrogate", *(["aggregation"] if aggregation else []))}

    class Elsewhere(find("aggregation.padded-divisor").kind if mode == WIDTH else Reference):
        def choose(self, objective: dict[str, Any]) -> dict[str, Any]:
            chosen = super().choose(objective)
            asked = chosen.get("ratio") in PAPER and chosen["surrogate"]["kind"] == "clip"
            return chosen | changed if asked else chosen

    Elsewhere.__doc__ = f"Another objective than was asked for: {other.told}"
    clause = "GSPO-RATIO-2" if isinstance(other.surrogate, Clip) else "GSPO-SURR-1"
    return Unlisted(other.name + (f" by {mode}" if mode else ""), clause, Elsewhere)
