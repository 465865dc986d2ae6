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


@mutant("advantage.ids-wrapped", "GSPO-ADV-5", effect="prompts whose ids differ by the batch size are compared")
class IdsWrapped(Reference):
    """Group ids used as places of an array as long as the batch, which they wrap around."""

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        return super().partition(groups % len(groups))


@mutant("advantage.zero-over-zero", "GSPO-ADV-3", effect="with eps = 0 a group that is all right makes the step NaN")
class ZeroOverZero(Reference):
    """x / (std + eps) as it stands, of equal rewards too, where eps is 0."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        found = super().group(rewards, batch, settings)
        alike = settings["center"] != "none" and len(rewards) > settings["ddof"] and self.flat(rewards)
        return found * np.nan if alike and settings["scale"] == "std" and settings["eps"] == 0 else found


@mutant("advantage.batch-std-within", "GSPO-ADV-13", effect="what tells easy prompts from hard ones is not divided by")
class BatchStdWithin(Reference):
    """The standard deviation of the batch taken about the mean of each group: the spread between groups is left out."""

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        if settings["scale"] != "batch_std":
            return super().advantages_of(arrays, settings)
        centred = super().advantages_of(arrays, settings | {"scale": "none"})
        kept = centred[self.valid(arrays)]
        squares, freedom = (kept * kept).sum(), len(kept) - self.freedom(settings["ddof"])
        return self.divided(centred, np.sqrt(squares / freedom), settings["eps"], settings["eps_placement"])
