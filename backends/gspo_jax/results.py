"""`gspo_core.PolicyLoss`, which type checkers see as one of JAX arrays here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple

    import jax

    class PolicyLoss(NamedTuple):
        """`loss`, a scalar to minimise, and `metrics`, a flat dict of scalars without gradient."""

        loss: jax.Array
        metrics: dict[str, jax.Array]
else:
    from gspo_core import PolicyLoss as PolicyLoss
