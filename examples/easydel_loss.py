"""EasyDeL's GSPO trainer with the loss of this package: a tiny random model learns to answer in sevens, on a CPU.

pip install 'gspo[jax]' easydel==0.3.0
python examples/easydel_loss.py

EasyDeL makes one update of what it generates, with every ratio 1. `Reusing` makes `num_iterations` updates, and hands
over the log-probabilities of before the first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

# EasyDeL would set flags of GPUs otherwise, and an XLA that does not know them ends the process.
os.environ.setdefault("EASYDEL_AUTO", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

try:
    import easydel as ed
    import jax.numpy as jnp
    import numpy as np
    from datasets import Dataset
    from easydel.trainers.training_utils import normalize_generation_model_kwargs
    from flax import nnx
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\n{missing}") from None

import gspo_jax as gspo
from gspo_jax.integrations import easydel as gspo_easydel

GROUP, PROMPTS, STEPS, LENGTH = 8, 4, 4, 8
SPECIAL = {"pad_token_id": 10, "bos_token_id": 11, "eos_token_id": 12}
REPORTED = ("share_of_sevens", "loss", "ratio_mean", "clip_fraction", "approx_kl")


class Reusing(ed.GSPOTrainer):
    """`num_iterations` updates of every generated batch, with `old_per_token_logps` of before the first."""

    left = 0

    def __init__(self, seen: list[dict[str, float]], **rest: Any) -> None:
        self.seen = seen
        super().__init__(**rest)

    def _preprocess_batch_input(self, state: Any, batch: Any, is_train: bool) -> Any:
        """EasyDeL generates here; the prompts of the steps in between stay unused."""
        if not is_train:
            return super()._preprocess_batch_input(state, batch, is_train)
        if not self.left:
            self.left = self.arguments.num_iterations
            self.made, self.told = super()._preprocess_batch_input(state, batch, is_train)
            self.made["old_per_token_logps"] = self._old_logp(state, self.made)
        self.left -= 1
        return self.made, dict(self.told)

    def _old_logp(self, state: Any, made: Any) -> Any:
        """By the function that EasyDeL asks the reference model with, so by that of the step."""
        ids, mask = (
            jnp.concatenate([made[f"prompt_{name}"].repeat(GROUP, 0), made[f"completion_{name}"]], axis=1)
            for name in ("ids", "mask")
        )
        inputs = normalize_generation_model_kwargs(None)
        return self.compute_refmodel_logps(state.graphstate, state.graphother, ids, mask, inputs)

    def on_step_end(self, state: Any, metrics: Any, step: int) -> Any:
        """Keeps what the step reported."""
        found = {name: float(value) for name, value in metrics.other_metrics.items()}
        self.seen.append(found | {"loss": float(metrics.loss)})
        return super().on_step_end(state, metrics, step)


def digits() -> PreTrainedTokenizerFast:
    """A tokenizer of ten digits, and four tokens with a meaning of their own."""
    words = [*"0123456789", "<pad>", "<bos>", "<eos>", "<unk>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {f"{word.strip('<>')}_token": word for word in words[10:]}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **names)


def tiny(seed: int) -> Any:
    """A Qwen3 of one layer with random weights."""
    config = ed.Qwen3Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        attn_mechanism="vanilla",
        **SPECIAL,
    )
    model = ed.Qwen3ForCausalLM(config=config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(seed))
    model.generation_config = GenerationConfig(**SPECIAL, do_sample=True, max_new_tokens=LENGTH)
    return model


def share_of_sevens(completions: list[str], **_: object) -> list[float]:
    """The share of sevens."""
    return [text.count("7") / LENGTH for text in completions]


def train(objective: gspo.Objective, seed: int = 0) -> list[dict[str, float]]:
    """A few steps of the trainer; the metrics of every update."""
    seen: list[dict[str, float]] = []
    rng = np.random.default_rng(seed)
    questions = rng.integers(100, 1000, 2 * STEPS * PROMPTS).astype(str)
    with tempfile.TemporaryDirectory() as folder:
        config = ed.GSPOConfig(
            beta=0.0,
            num_iterations=2,
            num_generations=GROUP,
            total_batch_size=PROMPTS,
            max_prompt_length=4,
            max_completion_length=LENGTH,
            max_training_steps=2 * STEPS,
            num_train_epochs=1,
            learning_rate=1e-2,
            generation_do_sample=True,
            use_esurge_generation=False,
            skip_apply_chat_template=True,
            save_directory=folder,
            do_last_save=False,
            save_tpu_preemption_checkpoints=False,
            use_wandb=False,
            report_metrics=False,
            progress_bar_type="json",
        )
        with gspo_easydel.install(objective):
            trainer = Reusing(
                seen,
                arguments=config,
                model=tiny(seed),
                reward_funcs=share_of_sevens,
                train_dataset=Dataset.from_dict({"prompt": list(questions)}),
                processing_class=digits(),
            )
        trainer.train()
    return seen


def main() -> None:
    for number, metrics in enumerate(train(gspo.Objective.gspo()), 1):
        print(f"update {number}:", *(f"{name} {metrics[name]:.4g}" for name in REPORTED))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
