"""Wrong advantages at the edges: rewards that were not scored, spreads that are undefined or 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..advantages import Settings
from ..registry import mutant
from ..whole import Reference


@mutant("advantage.invalid-read", "GSPO-ADV-5", effect="one response that could not be scored stops the run")
class InvalidRead(Reference):
    """Every reward checked, also those of members that do not count: an unscored NaN is refused."""

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        self.refuse("rewards", self.number(arrays["rewards"]))
        return super().advantages_of(arrays, settings)


@mutant("advantage.undefined-as-zero", "GSPO-ADV-1", effect="groups without a spread train a million times too hard")
class UndefinedAsZero(Reference):
    """0 for a standard deviation that is undefined: what should stand alone is divided by eps."""

    def std(self, values: NumPyArray, ddof: float) -> Any:
        return 0.0 if len(values) <= ddof else super().std(values, ddof)


@mutant("advantage.equal-always-zero", "GSPO-ADV-3", effect="groups that are all right or all wrong train nothing")
class EqualAlwaysZero(Reference):
    """0 for equal rewards although nothing is subtracted: rewards without a baseline are lost."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        uncentred = settings["center"] == "none" and len(rewards) > 1 and self.flat(rewards)
        return np.zeros_like(rewards) if uncentred else super().group(rewards, batch, settings)


@mutant(
    "advantage.bounded",
    "GSPO-ADV-1",
    effect="the one response of a group that stands out counts as much as an ordinary one",
)
class Bounded(Reference):
    """Advantages held at ±3 though nobody asked for it.

    A guard that is always on; in groups of up to ten nothing reaches it.
    """

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        return np.clip(super().group(rewards, batch, settings), -3.0, 3.0)


@mutant(
    "advantage.narrow-groups",
    "GSPO-ADV-5",
    effect="prompts whose ids agree in the last 16 bits are compared with each other",
)
class NarrowGroups(Reference):
    """Group ids cut to 16 bits.

    Hashes of prompts, sent on as short integers.
    """

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        return super().partition(groups.astype(np.int16))


@mutant("advantage.float-groups", "GSPO-ADV-5", effect="neighbouring ids above 2^24 are one group")
class FloatGroups(Reference):
    """Group ids held as float32, beside the rewards that they belong to."""

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        return super().partition(groups.astype(np.float32))


@mutant(
    "advantage.placement-of-group-alone",
    "GSPO-ADV-2",
    effect="a run that divides by the batch damps small spreads otherwise than it states",
)
class PlacementOfGroupAlone(Reference):
    """eps under the root for the standard deviation of the group alone: that of the batch, or of the others, has it added all the same."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        stated = settings if settings["scale"] == "std" else settings | {"eps_placement": "std"}
        return super().group(rewards, batch, stated)


@mutant(
    "advantage.invalid-in-count",
    "GSPO-ADV-6",
    effect="advantages too small by as much as 2 where few members of a group count",
)
class InvalidInCount(Reference):
    """Leave-one-out with n/(n-1) of all members, those that do not count among them."""

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        found, valid = super().advantages_of(arrays, settings), self.valid(arrays)
        for members in self.partition(np.asarray(arrays["groups"])):
            n, whole = np.count_nonzero(valid[members]), len(members)
            if settings["center"] == "leave_one_out" and n > 1:
                found[members] *= (whole / (whole - 1)) / (n / (n - 1))
        return found
