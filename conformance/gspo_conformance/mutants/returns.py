"""Advantages per token as stages: return-to-go, GAE, whitening, REINFORCE++."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..target import Case
from ..tensors import NumPyArray
from .sequences import Sequences


class ReturnReference:
    """The operations whose results have one entry per token; 0 at uncounted ones."""

    if TYPE_CHECKING:
        case: Case
        arrays: Callable[[], dict[str, Any]]
        layout: Callable[[dict[str, Any]], Sequences]
        number: Callable[[NumPyArray], NumPyArray]
        partition: Callable[[NumPyArray], list[NumPyArray]]
        std: Callable[..., Any]
        mean: Callable[[NumPyArray], Any]
        flat: Callable[[NumPyArray], bool]
        freedom: Callable[[float], float]

    def reinforce_returns(self) -> dict[str, Any]:
        """R_t = Σ_{u≥t} γ^{u-t} r_u over counted tokens (GSPO-ADV-8)."""
        arrays = self.arrays()
        sequences = self.layout(arrays)
        rewards, gamma = self.number(arrays["rewards"]), self.case.parameters.get("gamma", 1.0)
        return {"returns": self.returns(sequences, rewards, gamma).reshape(sequences.shape)}

    def returns(self, sequences: Sequences, rewards: NumPyArray, gamma: float) -> NumPyArray:
        """Return-to-go of every sequence."""
        found = np.zeros_like(rewards)
        for i in range(sequences.number):
            at = self.path(sequences, i)
            found[at] = self.recursion(rewards[at], self.discounts(sequences, at, gamma))
        return np.where(sequences.counted, found, 0.0)

    def path(self, sequences: Sequences, i: int) -> NumPyArray:
        """The tokens that time passes through: counted ones."""
        return sequences.tokens(i)

    def discounts(self, sequences: Sequences, at: NumPyArray, gamma: float) -> NumPyArray:
        """The factor between each token and the next one on the path."""
        return np.full(len(at), gamma)

    def recursion(self, terms: NumPyArray, factors: NumPyArray) -> NumPyArray:
        """y_t = x_t + f_t y_{t+1}."""
        found, after = np.zeros_like(terms), 0.0
        for t in range(len(terms) - 1, -1, -1):
            after = found[t] = terms[t] + factors[t] * after
        return found

    def gae_advantages(self) -> dict[str, Any]:
        """A_t = δ_t + γλ A_{t+1}, returns A + V (GSPO-ADV-9)."""
        arrays = self.arrays()
        sequences = self.layout(arrays)
        rewards, values = self.number(arrays["rewards"]), self.number(arrays["values"])
        ends = self.number(arrays["bootstrap"]) if "bootstrap" in arrays else np.zeros(sequences.number)
        advantages = np.zeros_like(rewards)
        for i in range(sequences.number):
            at = self.path(sequences, i)
            advantages[at] = self.gae(sequences, at, rewards[at], values[at], self.bootstrap(ends[i]))
        advantages = np.where(sequences.counted, advantages, 0.0)
        returns = np.where(sequences.counted, self.value_target(advantages, values), 0.0)
        return {"advantages": advantages.reshape(sequences.shape), "returns": returns.reshape(sequences.shape)}

    def gae(
        self, sequences: Sequences, at: NumPyArray, rewards: NumPyArray, values: NumPyArray, end: Any
    ) -> NumPyArray:
        """The advantages along one path."""
        gamma, lam = (self.case.parameters.get(name, 1.0) for name in ("gamma", "lam"))
        gammas = self.discounts(sequences, at, gamma)
        delta = rewards + gammas * np.append(values[1:], end)[: len(values)] - values
        return self.recursion(delta, gammas * self.decay(lam))

    def decay(self, lam: float) -> float:
        """λ."""
        return lam

    def bootstrap(self, end: Any) -> Any:
        """The value behind the last counted token."""
        return end

    def value_target(self, advantages: NumPyArray, values: NumPyArray) -> NumPyArray:
        """A + V."""
        return advantages + values

    def whiten(self) -> dict[str, Any]:
        """(x - mean) / √(var + ε) over counted entries (GSPO-ADV-10)."""
        arrays = self.arrays()
        values, settings = self.number(arrays["values"]), {"center": True, "ddof": 1, "eps": 1e-8}
        settings |= dict(self.case.parameters)
        counted = np.ones(values.shape, bool)
        if "mask" in arrays or "offsets" in arrays:
            counted = self.layout(arrays).counted
        found = self.whitened(values, counted, settings["ddof"], settings["eps"], center=settings["center"])
        return {"values": found.reshape(arrays["values"].shape)}

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        """Whitened values, 0 where they do not count; the mean is added back without centring."""
        entries = values[counted]
        found = np.zeros_like(values)
        if len(entries) < 2 or self.flat(entries):
            found[counted] = 0.0 if center else entries
            return found
        spread, mean = self.std(entries, self.freedom(ddof)), self.mean(entries)
        divisor = 1.0 if np.isnan(spread) else np.sqrt(spread * spread + eps)
        found[counted] = (entries - mean) / divisor + (0.0 if center else mean)
        return found

    def reinforce_pp_advantages(self) -> dict[str, Any]:
        """Returns-to-go, whitened over the batch, after the group baseline where there are groups (GSPO-ADV-11)."""
        arrays, parameters = self.arrays(), self.case.parameters
        sequences = self.layout(arrays)
        rewards = np.where(sequences.counted, self.number(arrays["token_rewards"]), 0.0)
        if "groups" in arrays:
            rewards = self.less_baseline(sequences, rewards, np.asarray(arrays["groups"]))
        returns = self.returns(sequences, rewards, parameters.get("gamma", 1.0))
        ddof, eps = parameters.get("ddof", 1), parameters.get("eps", 1e-8)
        found = self.whitened(returns, sequences.counted, ddof, eps, center=True)
        return {"advantages": found.reshape(sequences.shape)}

    def less_baseline(self, sequences: Sequences, rewards: NumPyArray, groups: NumPyArray) -> NumPyArray:
        """The group mean of total rewards, taken off the last counted token of each response."""
        totals = sequences.sum(rewards)
        for members in self.partition(groups):
            for i in members:
                rewards[sequences.tokens(i)[-1:]] -= self.mean(totals[members])
        return rewards
