"""What trainers compute, as they document or were measured: named combinations of mutants.

Not accusations: most are defaults chosen for token-level methods, several are deliberate. A run that
answers like one of these is told so.
"""

from __future__ import annotations

from dataclasses import dataclass

from .registry import Mutant, find


@dataclass(frozen=True)
class Dialect:
    """A trainer's setting and the mutants that, together, return what it returns."""

    trainer: str
    setting: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """`verl 0.9.1, loss_agg_mode token-mean (its default)`."""
        return f"{self.trainer}, {self.setting}"

    @property
    def parts(self) -> tuple[Mutant, ...]:
        """The mutants."""
        return tuple(find(name) for name in self.names)


MASKED = "mask.multiplied"
CAP = "ratio.cap-10"
DIALECTS = (
    Dialect("TRL 1.16", "loss_type dapo or bnpo (dapo is its default)", ("aggregation.token-mean", MASKED)),
    Dialect("TRL 1.16", "loss_type dr_grpo", ("aggregation.padded-divisor", MASKED)),
    Dialect("TRL 1.16", "loss_type luspo", ("aggregation.token-sum", MASKED)),
    Dialect("TRL 1.16", "loss_type grpo", (MASKED,)),
    Dialect("verl 0.9.1", "loss_agg_mode token-mean (its default)", ("aggregation.token-mean", CAP, MASKED)),
    Dialect("verl 0.9.1", "loss_agg_mode seq-mean-token-mean", (CAP, "aggregation.empty-excluded", MASKED)),
    Dialect("verl 0.9.1", "loss_agg_mode seq-mean-token-sum", ("aggregation.token-sum", CAP, MASKED)),
    Dialect("verl 0.9.1", "loss_agg_mode seq-mean-token-sum-norm", ("aggregation.padded-divisor", CAP, MASKED)),
    Dialect("OpenRLHF 0.11", "gspo", ("aggregation.empty-excluded", "numerics.length-epsilon", MASKED)),
    Dialect("SkyRL 0.4", "gspo, token_mean (its default)", ("aggregation.token-mean", CAP, MASKED)),
    Dialect("SkyRL 0.4", "gspo, sequence_mean", (CAP, MASKED)),
    Dialect("slime", "calculate-per-token-loss", ("aggregation.token-mean", MASKED)),
    Dialect("ROLL", "seq-mean-token-sum, dual clip", ("aggregation.token-sum", "clip.dual-leak", MASKED)),
    Dialect("ROLL", "seq-mean-token-mean, dual clip", ("clip.dual-leak", "aggregation.empty-excluded", MASKED)),
    Dialect(
        "AReaL 1.0.4", "importance_sampling_level sequence", ("aggregation.token-mean", "advantage.token-averaged")
    ),
    Dialect("AReaL 2025", "decoupled, behav_imp_weight_cap", ("aggregation.token-mean", "correction.clamp-drops")),
    Dialect("Tunix 0.1.7", "gspo-token", ("ratio.token-clamp", CAP, "aggregation.empty-excluded")),
    Dialect("Tunix 0.1.7", "gspo-token, packed", ("packing.one-ratio", "ratio.token-clamp", CAP)),
    Dialect("EasyDeL 0.3", "GSPO, old log-probabilities given", ("clip.max-for-min-negative",)),
    Dialect("EasyDeL 0.3, mlx-lm-lora", "as their trainers call it", ("ratio.always-one",)),
    Dialect("NeMo-RL", "GSPO with importance correction", ("correction.product-for-geometric", MASKED)),
    Dialect("PipelineRL", "gspo", ("aggregation.token-sum", "penalty.ignored")),
    Dialect("AgileRL 2.58, Unsloth", "their default reductions", ("aggregation.token-mean",)),
    Dialect("textpolicy 0.1.11", "sequence", ("clip.before-min", "metrics.clip-zero")),
    Dialect("prime-rl", "a custom GSPO under its global token count", ("aggregation.responses-over-tokens",)),
    Dialect("ms-swift 4.6", "loss_type bnpo or dapo", ("aggregation.token-mean", MASKED)),
    Dialect("ms-swift 4.6", "loss_type grpo, off-policy weights", ("penalty.corrected", MASKED)),
)
