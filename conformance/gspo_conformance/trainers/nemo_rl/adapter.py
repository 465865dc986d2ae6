"""`ClippedPGLossFn` with the counts of a step, on rows with one token in front; the advantage estimators themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...target import DTYPES, Case, Skip
from .. import demands
from ..adapter import Settings, TrainerTarget, checkout, offered, per_token, tensor, torch_kl, torch_loss
from ..stubs import names_only, stub
from .dialect import DIALECT, LOSS

SOURCE, RELEASE = checkout()
stub(
    *("ray", "transformers", "tensordict", "megatron", "nemo_automodel", "datasets", "torchdata", "accelerate"),
    *("vllm", "mlflow", "wandb", "PIL", "omegaconf", "hydra", "zmq", "rich", "tqdm", "swanlab", "matplotlib"),
    *("huggingface_hub", "requests", "yaml", "peft", "pynvml", "prometheus_client", "torchvision", "jaxtyping"),
)
names_only("nemo_rl.models.policy", "torch.utils.tensorboard", root=SOURCE)  # workers, and a logger

from nemo_rl.algorithms.advantage_estimator import (
    AdvEstimatorConfig,
    GeneralizedAdvantageEstimator,
    GRPOAdvantageEstimator,
)
from nemo_rl.algorithms.loss.loss_functions import ClippedPGLossConfig, ClippedPGLossFn
from nemo_rl.algorithms.utils import calculate_kl

GAE = {
    "normalize_advantages": False,
    "gae_lambda_value": None,
    "gae_lambda_policy": None,
    "length_adaptive_alpha": 0,
}


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`ClippedPGLossFn` with the tokens and responses of the step as its counts."""
    given = demands.count(case, "NeMo-RL")
    function = ClippedPGLossFn(_config(settings))
    batch = _batch(case)
    counts = [batch["sample_mask"].sum(), batch["token_mask"].sum()]
    if given is not None:
        counts = [torch.tensor(float(given))] * 2

    def loss(logp: Any) -> Any:
        batch["reference_policy_logprobs"] = batch.get("reference_policy_logprobs", _shifted(logp.detach()))
        return function(logp, batch, *counts)[0]

    return torch_loss(case, loss)


def _config(settings: Settings) -> ClippedPGLossConfig:
    """The real defaults with these settings over them; a key that is not there is an error."""
    own = {key.removeprefix(LOSS): value for key, value in settings.items()}
    if unknown := own.keys() - ClippedPGLossConfig.model_fields.keys():
        raise KeyError(f"ClippedPGLossConfig has no {', '.join(sorted(unknown))}")
    return ClippedPGLossConfig(**own)


def _batch(case: Case) -> dict[str, Any]:
    """Rows with one prompt token in front, which the loss drops; without a sampler's policy it is the old one."""
    names = {
        "old_logp": "prev_logprobs",
        "behavior_logp": "generation_logprobs",
        "ref_logp": "reference_policy_logprobs",
    }
    given = {
        key: _shifted(tensor(case.inputs[name], case.input_dtype)) for name, key in names.items() if name in case.inputs
    }
    return {
        "generation_logprobs": given["prev_logprobs"],
        **given,
        "advantages": _shifted(tensor(per_token(case))),
        "token_mask": _shifted(tensor(case.inputs["mask"]).long()),
        "sample_mask": torch.ones(case.inputs["mask"].shape[0]),
    }


def _shifted(values: Any) -> Any:
    return torch.nn.functional.pad(values, (1, 0))


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`GRPOAdvantageEstimator`, with the mean of the group or that of the others."""
    own = {"mean": ("std", "none"), "leave_one_out": ("leave_one_out_std", "none")}
    pairs = [(center, scale) for center, scales in own.items() for scale in scales]
    center, scale = demands.center_and_scale(case, "NeMo-RL", pairs)
    if scale != "none":
        demands.std(case, "NeMo-RL", 1e-6)
    return {"advantages": _estimated(case, center == "leave_one_out", scale != "none")}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`GRPOAdvantageEstimator` with the leave-one-out baseline, not divided."""
    return {"advantages": _estimated(case, True, False)}


def _estimated(case: Case, alone: bool, scaled: bool) -> Any:
    if case.dtype != "float32":
        raise Skip("NeMo-RL's rewards are float32")
    config = AdvEstimatorConfig(use_leave_one_out_baseline=alone, normalize_rewards=scaled)
    rewards = tensor(case.inputs["rewards"])
    prompts = tensor(case.inputs["groups"])[:, None]
    estimator = GRPOAdvantageEstimator(config, ClippedPGLossConfig())
    return estimator.compute_advantage(prompts, rewards, torch.ones_like(rewards)[:, None])[:, 0].numpy()


def _gae(**changes: Any) -> GeneralizedAdvantageEstimator:
    own = {"gae_lambda": 1.0, "gae_gamma": 1.0, **GAE}
    loss = ClippedPGLossConfig(**{key: value for key, value in changes.items() if not key.startswith("gae_")})
    return GeneralizedAdvantageEstimator(own | {k: v for k, v in changes.items() if k.startswith("gae_")}, loss)


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`GeneralizedAdvantageEstimator._compute_gae`, 0 where nothing is counted as its caller does."""
    estimator = _gae(gae_lambda=case.parameters["lam"], gae_gamma=case.parameters["gamma"])
    mask = tensor(case.inputs["mask"]).to(getattr(torch, case.dtype))
    found = estimator._compute_gae(tensor(case.inputs["rewards"]), tensor(case.inputs["values"]), mask)
    return {name: (one * mask).numpy() for name, one in zip(("advantages", "returns"), found, strict=True)}


def whiten(case: Case) -> Mapping[str, Any]:
    """`GeneralizedAdvantageEstimator._reward_whiten`, 0 where nothing is counted as its caller does."""
    demands.whitening(case, "NeMo-RL")
    values = tensor(case.inputs["values"])
    mask = tensor(case.inputs["mask"]).to(values.dtype) if "mask" in case.inputs else torch.ones_like(values)
    found = _gae()._reward_whiten(values, mask, shift_mean=case.parameters.get("center", True))
    return {"values": (found * mask).numpy()}


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """`GeneralizedAdvantageEstimator._build_token_level_rewards`."""
    keys = {"reference_policy_kl_penalty": case.parameters["coefficient"], "reference_policy_kl_type": _estimator(case)}
    logp, ref = (tensor(case.inputs[name]) for name in ("logp", "ref_logp"))
    mask = tensor(case.inputs["mask"]).long()
    estimator = _gae(use_kl_in_reward=True, **keys)
    return {"rewards": estimator._build_token_level_rewards(tensor(case.inputs["rewards"]), mask, logp, ref).numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`calculate_kl` with its clamps as they come."""
    estimator = _estimator(case)
    return torch_kl(case, lambda logp, ref: calculate_kl(logp, ref, estimator))


def _estimator(case: Case) -> str:
    return demands.estimator(case, "NeMo-RL", ("k1", "k2", "k3"))


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "gae_advantages": gae_advantages,
    "whiten": whiten,
    "token_kl_rewards": token_kl_rewards,
    "kl_penalty": kl_penalty,
}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp behavior_logp groups rewards values",
    "objective normalizer advantages center scale ddof eps eps_placement gamma lam estimator coefficient",
    dtypes=DTYPES,
    token_advantages=True,
)


def claims() -> TrainerTarget:
    """Every objective that the keys of `loss_fn` claim."""
    versions = {"nemo-rl": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """The two keys of GSPO and a clip range, all else as it comes; the reference of its KL term is the policy itself."""
    return claims().as_documented()
