"""Advantages, returns and rewards as a chain of small stages, each one a method that a mutant overrides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..target import Case
from ..tensors import NumPyArray
from .sequences import Sequences
from .tape import stop

Settings = dict[str, Any]
DEFAULTS: Settings = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"}


class AdvantageReference:
    """The operations from rewards to advantages."""

    if TYPE_CHECKING:
        case: Case
        inputs: Callable[[dict[str, Any]], dict[str, Any]]
        layout: Callable[[dict[str, Any]], Sequences]
        number: Callable[[NumPyArray], NumPyArray]
        estimate: Callable[[str, Any], Any]
        refuse: Callable[[str, NumPyArray], None]

    def arrays(self) -> dict[str, Any]:
        """The inputs of the case."""
        return self.inputs(dict(self.case.inputs))

    def settings(self, given: Settings) -> Settings:
        """The parameters of a statistic, defaults written out."""
        return DEFAULTS | given

    def group_advantages(self) -> dict[str, Any]:
        """A = (r - mean_g) / (std_g + ε), and its relatives (GSPO-ADV-1)."""
        arrays = self.arrays()
        given = {name: value for name, value in self.case.parameters.items() if name != "objective"}
        return {"advantages": self.advantages_of(arrays, self.settings(given))}

    def leave_one_out_advantages(self) -> dict[str, Any]:
        """A = r - the mean of the others (GSPO-ADV-6)."""
        settings = self.settings({"center": "leave_one_out", "scale": "none"})
        return {"advantages": self.advantages_of(self.arrays(), settings)}

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        """One advantage per reward."""
        rewards, valid = self.number(arrays["rewards"]), self.valid(arrays)
        self.refuse("rewards", rewards[valid])
        found = np.zeros_like(rewards)
        for members in self.partition(np.asarray(arrays["groups"])):
            kept = members[valid[members]]
            if kept.size:
                found[kept] = self.group(rewards[kept], rewards[valid], settings)
        return self.after(found)

    def valid(self, arrays: dict[str, Any]) -> NumPyArray:
        """Which members count."""
        everyone = np.ones(len(arrays["rewards"]), bool)
        return np.asarray(arrays["valid"], bool) if "valid" in arrays else everyone

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        """The members of each group, by id (GSPO-ADV-5)."""
        return [np.flatnonzero(groups == key) for key in np.unique(groups)]

    def after(self, advantages: NumPyArray) -> NumPyArray:
        """What is done to advantages once they are there: nothing."""
        return advantages

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        """The advantages of one group; equal rewards are exactly 0 (GSPO-ADV-3, GSPO-ADV-4)."""
        if settings["center"] != "none" and self.flat(rewards):
            return np.zeros_like(rewards)
        centred = self.centred(rewards, settings["center"])
        if settings["scale"] == "none":
            return centred
        spread = self.group_spread(rewards, batch, settings)
        return self.divided(centred, spread, settings["eps"], settings["eps_placement"])

    def flat(self, rewards: NumPyArray) -> bool:
        """Whether all are equal."""
        return bool(rewards.max() == rewards.min())

    def mean(self, values: NumPyArray) -> Any:
        """The arithmetic mean."""
        return values.mean()

    def centred(self, rewards: NumPyArray, center: str) -> NumPyArray:
        """r - mean, n/(n-1) (r - mean), or r."""
        if center == "none":
            return rewards
        deviation = rewards - self.mean(rewards)
        return deviation * (len(rewards) / (len(rewards) - 1)) if center == "leave_one_out" else deviation

    def group_spread(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> Any:
        """σ of the group, of the batch, or of the others; NaN where it is undefined."""
        scale, ddof = settings["scale"], self.freedom(settings["ddof"])
        if scale == "leave_one_out_std":
            return np.array([self.std(np.delete(rewards, i), ddof) for i in range(len(rewards))])
        return self.std(batch if scale == "batch_std" else rewards, ddof)

    def freedom(self, ddof: float) -> float:
        """What is taken off n in a variance (GSPO-ADV-2)."""
        return ddof

    def std(self, values: NumPyArray, ddof: float) -> Any:
        """√(Σ(x - mean)² / (n - ddof)), two passes; NaN where n ≤ ddof, 0 of equals."""
        if len(values) <= ddof:
            return np.nan
        if self.flat(values):
            return 0.0
        deviation = values - self.mean(values)
        return np.sqrt((deviation * deviation).sum() / (len(values) - ddof))

    def divided(self, values: NumPyArray, spread: Any, eps: float, placement: str) -> NumPyArray:
        """x / (σ + ε) or x / √(σ² + ε); x where σ is undefined or there is nothing to divide by."""
        divisor = spread + eps if placement == "std" else np.sqrt(spread * spread + eps)
        return values / np.where(np.isnan(divisor) | (divisor == 0), 1.0, divisor)

    def clip_advantages(self) -> dict[str, Any]:
        """max(-b, min(A, b)) (GSPO-ADV-12)."""
        arrays, bound = self.arrays(), self.case.parameters["bound"]
        found = self.held_advantages(self.number(arrays["advantages"]), bound)
        if "mask" in arrays or "offsets" in arrays:
            found = np.where(self.layout(arrays).counted, found, 0.0)
        return {"advantages": found.reshape(arrays["advantages"].shape)}

    def held_advantages(self, advantages: NumPyArray, bound: float) -> NumPyArray:
        """A within ±b."""
        return np.clip(advantages, -bound, bound)

    def clip_rewards(self) -> dict[str, Any]:
        """max(low, min(r, high)) (GSPO-REWARD-1)."""
        low, high = self.case.parameters["low"], self.case.parameters["high"]
        return {"rewards": self.held_rewards(self.number(self.arrays()["rewards"]), low, high)}

    def held_rewards(self, rewards: NumPyArray, low: float, high: float) -> NumPyArray:
        """r within [low, high]."""
        return np.clip(rewards, low, high)

    def normalize_rewards(self) -> dict[str, Any]:
        """r - mean, r / (std + ε), or both (GSPO-REWARD-2, GSPO-REWARD-3)."""
        arrays = self.arrays()
        rewards = self.number(arrays["rewards"])
        defaults = {"method": "batch", "shift": True, "scale": True, "ddof": 1, "eps": 1e-6}
        settings = self.switches(defaults | dict(self.case.parameters))
        found = rewards.copy()
        if settings["method"] is None:
            return {"rewards": found}
        for members in self.sources(arrays, settings["method"]):
            found[members] = self.normalized(rewards[members], self.population(rewards[members], arrays), settings)
        return {"rewards": found}

    def switches(self, settings: Settings) -> Settings:
        """What is asked for."""
        return settings

    def sources(self, arrays: dict[str, Any], method: str) -> list[NumPyArray]:
        """Which rewards share their statistics."""
        if method == "group":
            return self.partition(np.asarray(arrays["groups"]))
        return [np.arange(len(arrays["rewards"]))]

    def population(self, rewards: NumPyArray, arrays: dict[str, Any]) -> NumPyArray:
        """What the statistics are of: with running moments everything before, and these (GSPO-REWARD-3)."""
        return np.concatenate([self.number(arrays["history"]), rewards]) if "history" in arrays else rewards

    def normalized(self, rewards: NumPyArray, population: NumPyArray, settings: Settings) -> NumPyArray:
        """One set of rewards by the statistics of a population."""
        shifted = rewards
        if settings["shift"]:
            shifted = np.zeros_like(rewards) if self.flat(population) else rewards - self.mean(population)
        if not settings["scale"]:
            return shifted
        return self.divided(shifted, self.std(population, self.freedom(settings["ddof"])), settings["eps"], "std")

    def token_kl_rewards(self) -> dict[str, Any]:
        """r on the last counted token, less β KL_t on each (GSPO-REWARD-4)."""
        arrays, parameters = self.arrays(), self.case.parameters
        sequences = self.layout(arrays)
        new, ref, rewards = (self.number(arrays[name]) for name in ("logp", "ref_logp", "rewards"))
        z = np.where(sequences.counted, new - ref, 0.0)
        kl = stop(self.estimate(self.reward_estimator(parameters.get("estimator", "k1")), z))
        found = self.less_penalty(np.zeros_like(z), kl * parameters["coefficient"])
        for i in range(sequences.number):
            at = self.last(sequences, i)
            found[at] += rewards[i]
        return {"rewards": np.where(sequences.counted, found, 0.0).reshape(sequences.shape)}

    def reward_estimator(self, estimator: str) -> str:
        """The estimator of the KL in the reward."""
        return estimator

    def less_penalty(self, rewards: NumPyArray, penalty: NumPyArray) -> NumPyArray:
        """r_t - β KL_t."""
        return rewards - penalty

    def last(self, sequences: Sequences, i: int) -> NumPyArray:
        """Where the reward of sequence i stands: its last counted token, nowhere without one."""
        return sequences.tokens(i)[-1:]

    def soft_overlong_penalty(self) -> dict[str, Any]:
        """0 up to L - C, linear to -1 at L, -1 beyond (GSPO-REWARD-5)."""
        lengths, parameters = self.number(self.arrays()["lengths"]), self.case.parameters
        return {"values": self.overlong(lengths, parameters["max_length"], parameters["cache"])}

    def overlong(self, lengths: NumPyArray, longest: float, cache: float) -> NumPyArray:
        """The penalty."""
        return np.clip((longest - cache - lengths) / cache, -1.0, 0.0)

    def informative_groups(self) -> dict[str, Any]:
        """False for a group of equals, or whose mean is not inside the bounds (GSPO-REWARD-6)."""
        arrays, parameters = self.arrays(), self.case.parameters
        rewards, valid = self.number(arrays["rewards"]), self.valid(arrays)
        keep = np.zeros(len(rewards), bool)
        for members in self.partition(np.asarray(arrays["groups"])):
            kept = members[valid[members]]
            if kept.size:
                keep[kept] = self.informs(rewards[kept], parameters.get("low"), parameters.get("high"))
        return {"keep": keep}

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        """Whether a group says anything."""
        return not self.flat(rewards) and self.inside(self.mean(rewards), low, high)

    def inside(self, reward: Any, low: float | None, high: float | None) -> bool:
        """Whether a mean reward lies between the bounds, which are open."""
        return (low is None or reward > low) and (high is None or reward < high)
