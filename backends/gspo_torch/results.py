"""`gspo_core.PolicyLoss`, which type checkers see as one of tensors here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple

    from torch import Tensor

    class PolicyLoss(NamedTuple):
        """`loss`, a scalar to minimise, and `metrics`, a flat dict of scalars without gradient."""

        loss: Tensor
        metrics: dict[str, Tensor]
else:
    from gspo_core import PolicyLoss as PolicyLoss
