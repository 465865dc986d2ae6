"""Tunix's GRPO learner with the loss of this package: a tiny random model learns to answer in sevens, on a CPU.

pip install 'gspo[jax]' google-tunix==0.1.7
python examples/tunix_loss.py
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

try:
    import optax
    from flax import nnx
    from tunix.models.qwen3.model import ModelConfig, Qwen3
    from tunix.rl import rl_cluster as cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\n{missing}") from None

import gspo_jax as gspo
from gspo_jax.integrations import tunix as gspo_tunix

GROUP, PROMPTS, STEPS, LENGTH = 8, 4, 4, 8
TINY = ModelConfig(
    num_layers=1,
    vocab_size=16,
    embed_dim=32,
    hidden_dim=64,
    num_heads=2,
    head_dim=16,
    num_kv_heads=1,
    rope_theta=10_000,
    norm_eps=1e-6,
)


class Digits:
    """A tokenizer of ten digits, and three tokens with a meaning of their own."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [int(letter) for letter in text]

    def decode(self, ids: object, **_: object) -> str:
        return "".join(str(int(one)) for one in np.atleast_1d(ids) if int(one) < 10)

    def pad_id(self) -> int:
        return 10

    def bos_id(self) -> int:
        return 11

    def eos_id(self) -> int:
        return 12


def sevens(completions: list[str], **_: object) -> list[float]:
    """The share of sevens."""
    return [text.count("7") / LENGTH for text in completions]


REPORTED = ("share_of_sevens", "ratio_mean", "clip_fraction", "approx_kl")


def train(objective: gspo.Objective, seed: int = 0) -> list[dict[str, float]]:
    """A few steps of the learner; the metrics of every mini-batch."""
    seen: list[dict[str, float]] = []
    shares: list[float] = []

    def reward(completions: list[str], **rest: object) -> list[float]:
        rewards = sevens(completions, **rest)
        shares.append(float(np.mean(rewards)))
        return rewards

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    policy, reference = (Qwen3(TINY, rngs=nnx.Rngs(seed)) for _ in range(2))
    settings = cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((cluster.Role.ACTOR, cluster.Role.REFERENCE, cluster.Role.ROLLOUT), mesh),
        training_config=cluster.RLTrainingConfig(
            actor_optimizer=optax.adam(1e-3), eval_every_n_steps=10**6, max_steps=2 * STEPS
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=LENGTH, max_prompt_length=4, kv_cache_size=64, temperature=1.0
        ),
    )
    learner = GRPOLearner(
        cluster.RLCluster(actor=policy, reference=reference, tokenizer=Digits(), cluster_config=settings),
        GRPOConfig(
            policy_loss_fn=gspo_tunix.register(objective),
            num_generations=GROUP,
            num_iterations=2,
            beta=0.0,
        ),
        reward,
    )
    trainer = learner.rl_cluster.actor_trainer
    trainer.with_rl_metrics_to_log(gspo_tunix.METRICS)
    keep = trainer._post_process_train_step

    def kept(aux: dict[str, jax.Array]) -> None:
        metrics = {name: float(value) for name, value in aux.items()}
        seen.append(metrics | {"share_of_sevens": shares[-1]})
        keep(aux)

    trainer._post_process_train_step = kept
    rng = np.random.default_rng(seed)
    questions = rng.integers(100, 1000, (STEPS, PROMPTS)).astype(str)
    learner.train([{"prompts": row} for row in questions])
    return seen


def main() -> None:
    for number, metrics in enumerate(train(gspo.Objective.gspo()), 1):
        print(
            f"update {number}:",
            *(f"{name} {metrics[name]:.4g}" for name in REPORTED),
        )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
