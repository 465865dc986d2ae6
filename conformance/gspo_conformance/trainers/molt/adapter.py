"""`PolicyTrainer.training_step` up to its backward pass, under the arguments of its command line; advantages by its experience maker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..stubs import holding, stub

stub(
    *("ray", "transformers", "nemo_automodel", "vllm", "flash_attn", "datasets", "tqdm", "PIL", "torchdata"),
    *("aiohttp", "fastapi", "uvicorn", "openai", "httpx", "wandb", "tokenizers", "huggingface_hub", "packaging"),
    *("safetensors", "tensorboard", "modelscope"),
)
from ..adapter import Settings, TrainerTarget, checkout, offered, per_token, tensor, torch_kl, torch_loss

SOURCE, RELEASE = checkout()

from molt.models.utils import compute_approx_kl
from molt.trainer.algorithm.advantage import AdvantageContext, normalize_advantages
from molt.trainer.algorithm.experience import Experience
from molt.trainer.rollout.experience_maker import RemoteExperienceMaker
from molt.trainer.rollout.samples_generator import SamplesGenerator
from molt.trainer.workers.policy_actor import PolicyTrainer

from ...target import INPUT_DTYPES, Case, Skip
from ...tensors import NumPyArray
from .. import demands
from .command_line import arguments
from .dialect import DIALECT
from .findings import ADVANTAGE, REWARDS

logging.disable(logging.WARNING)  # it logs to the stream of the answers
holding("molt.trainer.workers.policy_actor", torch_dist_barrier_and_cuda_sync=lambda: None)
holding("ray", get=lambda found: found)
FAR = 1e30
UNBOUND = {REWARDS: (-FAR, FAR)}


class _Total(Exception):
    """The loss that a training step hands to its backward pass."""


def _hand_out(loss: Any, *_: Any, **__: Any) -> None:
    raise _Total(loss)


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-batch with the tokens of the whole step as its count, on one rank."""
    trainer = _trainer(tuple(sorted(settings.items())))
    given = demands.count(case, "Molt")
    mask = tensor(case.inputs["mask"]).bool()
    count = mask.sum() if given is None else torch.tensor(float(given))
    names = {"action": "old_logp", "base_action": "ref_logp", "rollout": "behavior_logp"}
    scored = {
        f"{key}_log_probs": tensor(case.inputs[name], case.input_dtype)
        for key, name in names.items()
        if name in case.inputs
    }
    experience = Experience(action_mask=mask, advantages=tensor(per_token(case)), **scored)
    coefficient = trainer.args.algo.kl.init_coef

    def loss(logp: Any) -> Any:
        trainer.actor.given = logp
        try:
            trainer.training_step(experience, coefficient, count, 1, True)
        except _Total as found:
            return found.args[0]
        raise RuntimeError("Molt's training step ended without a backward pass")

    return torch_loss(case, loss)


class _Actor:
    """A model whose log-probabilities are given."""

    model, given = None, None

    def train(self) -> None:
        """Nothing to switch."""

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"action_log_probs": self.given}


@cache
def _trainer(settings: tuple[tuple[str, Any], ...]) -> Any:
    """A `PolicyTrainer` as its worker makes it, with the loss that these arguments give."""
    strategy = SimpleNamespace(args=arguments(dict(settings)), dp_size=1, backward=_hand_out)
    return PolicyTrainer(strategy, _Actor(), None, None)


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_approx_kl`."""
    estimator = demands.estimator(case, "Molt", ("k1", "k2", "k3"))
    return torch_kl(case, lambda logp, ref: compute_approx_kl(logp, ref, estimator))


def _computed(settings: Settings, coefficient: float = 0.0, **given: Any) -> Any:
    """`compute_advantages_and_returns` of one experience, whatever the bounds of its rewards unless they are set."""
    args = arguments(UNBOUND | settings)
    strategy = SimpleNamespace(args=args)
    maker = RemoteExperienceMaker(None, None, SimpleNamespace(value=coefficient), strategy, None)
    return maker.compute_advantages_and_returns([Experience(index=list(range(len(given["rewards"]))), **given)])[0]


def _outcome(case: Case, estimator: str) -> NumPyArray:
    rewards = tensor(case.inputs["rewards"])
    one = torch.ones_like(rewards)[:, None]
    groups = case.inputs.get("groups", np.zeros(len(rewards)))
    ids = {"rollout_ids": list(range(len(rewards))), "group_ids": [f"prompt {group}" for group in groups]}
    found = _computed({ADVANTAGE + "estimator": estimator}, rewards=rewards, action_mask=one.bool(), kl=0 * one, **ids)
    return found.advantages[:, 0].numpy()


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`grpo`, `dr_grpo` or `rloo`."""
    estimators = {("mean", "std"): "grpo", ("mean", "none"): "dr_grpo", ("leave_one_out", "none"): "rloo"}
    center, scale = demands.center_and_scale(case, "Molt", estimators)
    if scale == "std":
        demands.std(case, "Molt", 1e-9)
    return {"advantages": _outcome(case, estimators[center, scale])}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`rloo`."""
    return {"advantages": _outcome(case, "rloo")}


def clip_rewards(case: Case) -> Mapping[str, Any]:
    """`reward.clip_range`, read off the returns of `reinforce`."""
    bounds = {REWARDS: (case.parameters["low"], case.parameters["high"])}
    rewards = tensor(case.inputs["rewards"])
    one = torch.ones_like(rewards)[:, None]
    found = _computed(bounds | _plain("reinforce"), rewards=rewards, action_mask=one.bool(), kl=0 * one)
    return {"rewards": found.returns[:, 0].numpy()}


def _plain(estimator: str, **keys: Any) -> Settings:
    """An estimator without whitening."""
    own = {"estimator": estimator, "no_whiten": True, **keys}
    return {ADVANTAGE + key: value for key, value in own.items()}


def _token_rewards(case: Case, settings: Settings, **more: Any) -> Any:
    """What an estimator makes of rewards a token: they come as its KL term, times -1, beside an outcome of 0."""
    rewards, mask = tensor(case.inputs["rewards"]), tensor(case.inputs["mask"]).bool()
    return _computed(settings, 1.0, rewards=torch.zeros(len(rewards)), action_mask=mask, kl=-rewards, **more)


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`gae` without whitening."""
    settings = _plain("gae", gamma=case.parameters.get("gamma", 1.0), lam=case.parameters.get("lam", 1.0))
    found = _token_rewards(case, settings, values=tensor(case.inputs["values"]))
    return {"advantages": found.advantages.numpy(), "returns": found.returns.numpy()}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`reinforce` without whitening, times the mask as the losses do."""
    found = _token_rewards(case, _plain("reinforce", gamma=case.parameters.get("gamma", 1.0)))
    return {"returns": (found.returns * found.action_mask).numpy()}


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """`reinforce` with gamma 0, whose returns are the rewards of the tokens."""
    mask, kl = tensor(case.inputs["mask"]).bool(), torch.from_numpy(kl_penalty(case)["value"])
    given = {"rewards": tensor(case.inputs["rewards"]), "action_mask": mask, "kl": kl}
    return {
        "rewards": _computed(_plain("reinforce", gamma=0.0), case.parameters["coefficient"], **given).returns.numpy()
    }


def whiten(case: Case) -> Mapping[str, Any]:
    """`normalize_advantages`, times the mask as the losses do."""
    asked = {"center": True, "ddof": 1, "eps": 1e-8} | dict(case.parameters)
    if (asked["center"], asked["ddof"]) != (True, 0):
        raise Skip("Molt whitens with the population's standard deviation, about the mean")
    values = tensor(case.inputs["values"])
    mask = tensor(case.inputs["mask"]).bool() if "mask" in case.inputs else torch.ones_like(values).bool()
    context = AdvantageContext(torch.arange(len(values)), [len(values)], [mask], 0.0, 1.0, 1.0, [])
    return {"values": (normalize_advantages([values], context)[0] * mask).numpy()}


def informative_groups(case: Case) -> Mapping[str, Any]:
    """`_filter_group`, group by group, with the range that is the default where none is asked for."""
    groups, rewards = case.inputs["groups"], case.inputs["rewards"]
    keep = np.zeros(len(rewards), bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) == 1:
            raise Skip("Molt asks for more than one response to a prompt")
        keep[rows] = bool(_filtered(rewards[rows], *(case.parameters.get(side) for side in ("low", "high"))))
    return {"keep": keep}


def _filtered(scores: NumPyArray, low: float | None, high: float | None) -> list[Any]:
    bounds = (0, 1) if low is None and high is None else (-FAR if low is None else low, FAR if high is None else high)
    settings = {"algo.dynamic_filtering_range": bounds, "rollout.n_samples_per_prompt": len(scores)}
    samples = [Experience(scores=torch.tensor([score]), rollout_ids=[i]) for i, score in enumerate(scores)]
    generator = SimpleNamespace(args=arguments({"algo.dynamic_filtering_enable": True, **settings}))
    generator._passes_dynamic_filter = SamplesGenerator._passes_dynamic_filter.__get__(generator)
    return SamplesGenerator._filter_group(generator, [(one, None) for one in samples], True, {"dynamic_filter": 0})


OPERATIONS = {
    "kl_penalty": kl_penalty,
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "clip_rewards": clip_rewards,
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
    "token_kl_rewards": token_kl_rewards,
    "whiten": whiten,
    "informative_groups": informative_groups,
}
CAPABILITIES = offered(  # float32: the ratio is, whatever comes in
    ("step", *OPERATIONS),
    "logp old_logp advantages mask ref_logp behavior_logp rewards groups values",
    "objective normalizer estimator center scale ddof eps eps_placement gamma lam low high coefficient",
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that `loss_mode`, the corrections and the KL term claim."""
    versions = {"molt": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--actor.loss_mode gspo` and a clip range, all else as it comes."""
    return claims().as_documented()
