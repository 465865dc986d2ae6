"""Importance ratios: how much likelier the new policy makes a token or a response than the old one did."""

from dataclasses import dataclass
from typing import Any

from mpmath import exp, fsum, mpf


@dataclass(frozen=True)
class Ratio:
    """x = exp(l); `spread` is what one unit of roundoff per token does to l; `uncapped` and `reach` are both before a cap."""

    log: mpf
    value: mpf
    spread: mpf
    uncapped: mpf
    reach: mpf

    @property
    def passes(self) -> bool:
        """Whether l moves with the log-probabilities: no cap holds it (GSPO-RATIO-6)."""
        return self.uncapped <= self.log


def token_log_ratios(logp: list[mpf], old_logp: list[mpf]) -> list[mpf]:
    """d_t = log pi(y_t) - log pi_old(y_t) (GSPO-RATIO-1, GSPO-RATIO-5)."""
    return [new - old for new, old in zip(logp, old_logp, strict=True)]


def mean(values: list[mpf]) -> mpf:
    """(1/n) sum v; 0 of nothing."""
    return fsum(values) / len(values) if values else mpf(0)


def sequence_log_ratio(logp: list[mpf], old_logp: list[mpf]) -> mpf:
    """m = (1/T) sum_t d_t, 0 for an empty response (GSPO-RATIO-2, GSPO-DATA-3)."""
    return mean(token_log_ratios(logp, old_logp))


def ratios(objective: dict[str, Any], live: list[mpf], frozen: list[mpf], old_logp: list[mpf]) -> list[Ratio]:
    """The ratio at every counted token of one response; `frozen` is what a stop-gradient sees (GSPO-RATIO-1, -2, -3, -7)."""
    kind, cap = objective["ratio"], objective["log_ratio_cap"]
    differences = token_log_ratios(live, old_logp)
    sizes = [abs(difference) for difference in differences]
    if kind == "token":
        return [_ratio(log, size, cap) for log, size in zip(differences, sizes, strict=True)]
    if kind == "sequence":
        return [_ratio(mean(differences), mean(sizes), cap)] * len(live)
    if kind == "product":
        return [_ratio(fsum(differences), fsum(sizes), cap)] * len(live)
    return _gspo_token_ratios(live, frozen, old_logp, cap)


def _gspo_token_ratios(live: list[mpf], frozen: list[mpf], old_logp: list[mpf], cap: mpf | None) -> list[Ratio]:
    """s_t = sg[s] pi(y_t) / sg[pi(y_t)] (GSPO-RATIO-3)."""
    log = sequence_log_ratio(frozen, old_logp)
    spread = mean([abs(difference) for difference in token_log_ratios(frozen, old_logp)])
    if live is frozen:
        return [_ratio(log, spread, cap)] * len(live)
    return [_ratio(log + new - base, spread, cap) for new, base in zip(live, frozen, strict=True)]


def _ratio(log: mpf, spread: mpf, cap: mpf | None) -> Ratio:
    """x = exp(min(l, c)), with no derivative where l > c (GSPO-RATIO-6)."""
    if cap is not None and log > cap:
        return Ratio(cap, exp(cap), abs(cap), log, spread)
    return Ratio(log, exp(log), spread, log, spread)


def metric_ratios(objective: dict[str, Any], per_response: list[list[Ratio]]) -> list[Ratio]:
    """The units of the ratio: every counted token, or every response with a counted token (GSPO-METRIC-2)."""
    if objective["ratio"] == "token":
        return [ratio for tokens in per_response for ratio in tokens]
    return [tokens[0] for tokens in per_response if tokens]
