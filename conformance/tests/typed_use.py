"""What a type checker says to users of the suite; basedpyright reads it, nothing runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gspo_conformance import Capabilities, Case, Run, Target, check, loss_target, vectors, verify


class Mine:
    """A target as `gspo_conformance.target` shows one."""

    name = "mine"
    version = {"mine": "1.0"}
    capabilities = Capabilities(operations={"policy_loss"}, gradient=True)

    def run(self, case: Case) -> dict[str, Any]:
        """An answer."""
        return {"loss": case.inputs["logp"].sum()}


@dataclass(frozen=True)
class Frozen:
    """A target whose fields cannot be written."""

    name: str
    version: Mapping[str, str]
    capabilities: Capabilities

    def run(self, case: Case) -> dict[str, Any]:
        """An answer."""
        return {"loss": case.inputs["logp"].sum()}


def used() -> list[Run]:
    """Every way of handing over a target."""
    targets: list[Target] = [Mine(), Frozen("frozen", {}, Capabilities()), loss_target(lambda *arrays: 0.0, "numpy")]
    verify(targets[0], vectors("gradient/*")[0])
    return [check(target) for target in targets]
