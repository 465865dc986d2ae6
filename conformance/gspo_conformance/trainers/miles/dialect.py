"""Miles' command line: slime's, without `cispo`, with log-ratios clamped to ±20 and a scoring pass that may be left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ..dialect import Finding
from ..slime.dialect import DEFAULTS as SLIME
from ..slime.dialect import KINDS, Slime

DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in SLIME.items() if key != "custom_advantage_function_path"},
    "skip_actor_forward_only": False,
}
REFUSED = (("use_rollout_logprobs", "use_tis"), ("kl_coef", "kl_loss_coef"), ("kl_coef", "skip_actor_forward_only"))
CAP = 20.0


class Miles(Slime):
    """`gspo` as it comes is the paper's objective, but for the range and a clamp that only a collapse reaches."""

    name, title = "miles", "Miles"
    versions = ("31f1ca96",)
    defaults: ClassVar[dict[str, Any]] = DEFAULTS
    grouped = ("grpo", "gspo")
    kinds: ClassVar[dict[str, tuple[str, float | None, float | None]]] = {**KINDS, "low_var_kl": ("k3", CAP, 10.0)}
    icepop = "miles.backends.training_utils.loss_hub.corrections.icepop_function"
    cap = CAP

    def findings(self, every: Mapping[str, Any]) -> Iterator[Finding]:
        """Those of slime, then pairs that Miles refuses and the ratio that is 1 by construction."""
        yield from super().findings(every)
        for one, other in REFUSED:
            if every[one] and every[other]:
                told = f"Miles refuses {one} together with {other}"
                fix = f"no --{other.replace('_', '-')}"
                yield Finding("refused", "error", other, told, "GSPO-RATIO-1", "the run does not start", fix)
        if not every["skip_actor_forward_only"]:
            return
        key, fix = "skip_actor_forward_only", "no --skip-actor-forward-only"
        if _several(every):
            told = f"Miles refuses {key} where a rollout makes more than one optimiser step"
            yield Finding("refused", "error", key, told, "GSPO-RATIO-8", "the run does not start", fix)
        elif not every["use_rollout_logprobs"]:
            told = "the old policy is the policy itself, detached: every ratio is 1 and nothing is ever clipped"
            yield Finding("ratio-forced", "warning", key, told, "GSPO-RATIO-8", "GSPO and GRPO are one", fix)


def _several(every: Mapping[str, Any]) -> bool:
    """Whether the sizes that are given make more than one optimiser step of a rollout."""
    steps, part, prompts = (every[key] for key in ("num_steps_per_rollout", "global_batch_size", "rollout_batch_size"))
    if steps is not None:
        return int(steps) > 1
    return bool(part and prompts) and int(prompts) * int(every["n_samples_per_prompt"]) > int(part)


DIALECT = Miles()
