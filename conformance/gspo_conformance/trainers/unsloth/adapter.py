"""`grpo_compute_loss` of unsloth-zoo, uncompiled: the function that its trainer compiles and its chunked path differentiates."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from ..stubs import compile_nothing, holding, names_only, stub, without_init

stub(
    "datasets",
    "transformers",
    "tqdm",
    "trl",
    "huggingface_hub",
    "psutil",
    "requests",
    "peft",
    "triton",
    "tokenizers",
    "unsloth",
)
# They look for a GPU and patch transformers.
without_init("unsloth_zoo", "unsloth_zoo.temporary_patches")
names_only("unsloth_zoo.device_type")
holding("unsloth_zoo.temporary_patches.utils", torch_compile_with_fallback=compile_nothing)

from unsloth_zoo.rl_replacements import grpo_compute_loss

from ...target import DTYPES, INPUT_DTYPES, Case
from ...words import HarnessError
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_loss
from .dialect import DIALECT

RELEASE = version("unsloth-zoo")
NAME = f"Unsloth {RELEASE}"
READS = set(grpo_compute_loss.__code__.co_consts)
if "gather" in grpo_compute_loss.__code__.co_names:
    raise HarnessError(f"the loss of {NAME} takes logits: 2026.2.1 is the first release that can be checked")
PASSED = (
    *("loss_type", "importance_sampling_level", "delta", "max_completion_length", "use_bias_correction_kl"),
    *("sapo_temperature_pos", "sapo_temperature_neg", "use_vllm", "vllm_importance_sampling_correction"),
    *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"),
)
# What a release that does not read these does, and what it says where it does not know the value of one.
MODE = "vllm_importance_sampling_mode"
WITHOUT = {
    MODE: "token_truncate",
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_correction": True,
    "use_bias_correction_kl": False,
}
UNKNOWN = {
    "Unknown loss type": "loss_type",
    "sapo is only available in TRL 0.26.0+": "loss_type",
    "Unknown vLLM importance sampling mode": MODE,
}


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-batch that is the whole step, as `grpo_accumulated_loss` calls it."""
    demands.count(case, "Unsloth")
    every = dict(DIALECT.read(settings, RELEASE).settings)
    high = every["epsilon"] if every["epsilon_high"] is None else every["epsilon_high"]
    mask, given = tensor(case.inputs["mask"]).int(), _given(case)
    options = _read(every) | {"epsilon_low": every["epsilon"], "epsilon_high": high, "num_items_in_batch": mask.sum()}
    advantages, ids = tensor(case.inputs["advantages"]), torch.zeros_like(mask)

    def loss(logp: Any) -> Any:
        ref = given.get("ref_logp", logp.detach())
        old, sampled = given["old_logp"], given.get("behavior_logp")
        try:
            return grpo_compute_loss(ref, logp, old, sampled, ids, mask, every["beta"], advantages, **options)[0]
        except Exception as error:
            raise demands.refused(error, UNKNOWN, every, NAME) from error

    return torch_loss(case, loss)


def _read(every: Settings) -> dict[str, Any]:
    """The options of the loss; a skip where one that this release does not read is to be something else than what it does without."""
    corrects = every["use_vllm"] and every["vllm_importance_sampling_correction"]
    matters = {"vllm": corrects, "sapo": every["loss_type"] == "sapo", "bias": every["beta"]}
    options = {name: every[name] for name in PASSED if all(matters[word] for word in matters if word in name)}
    if corrects and MODE not in READS:
        options["vllm_importance_sampling_cap"] = options.pop("vllm_importance_sampling_clip_max")
    return dict(demands.had(options, READS, WITHOUT, NAME))


def _given(case: Case) -> dict[str, Any]:
    names = ("old_logp", "ref_logp", "behavior_logp")
    return {name: tensor(case.inputs[name], case.input_dtype) for name in names if name in case.inputs}


CAPABILITIES = offered(
    (),
    "logp old_logp advantages mask ref_logp behavior_logp",
    "objective",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims."""
    versions = {"unsloth-zoo": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, {}, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level="sequence"`, all else as it comes: `loss_type="dapo"`."""
    return claims().as_documented(token_advantages=False)
