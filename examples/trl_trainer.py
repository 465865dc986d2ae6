"""GSPO in TRL: three optimiser steps of a tiny random policy on a CPU, nothing downloaded.

    pip install 'gspo[torch]' trl==1.16.0
    python examples/trl_trainer.py

The policy is rewarded for the letter a. Every completion is used for two steps, so that the second is
off-policy; in a run of your own, take a real model, a real data set and a real reward.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

try:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\n{missing}") from None

from gspo_torch.integrations.trl import GSPOConfig, GSPOTrainer

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def policy() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=1, **shape, **special))


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("a")) - 0.01 * len(text) for text in completions]


def main(folder: str) -> None:
    args = GSPOConfig(
        folder,
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=2,
        num_iterations=2,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    prompts = Dataset.from_dict({"prompt": ["a b c", "d e", "f g h", "x y"] * 4})
    trainer = GSPOTrainer(policy(), reward, args=args, train_dataset=prompts, processing_class=tokenizer())
    trainer.train()
    for step in trainer.state.log_history[:-1]:
        print(
            f"step {step['step']}: loss {step['loss']:+.2e}, ratio {step['gspo/ratio_min']:.3f} to "
            f"{step['gspo/ratio_max']:.3f}, {step['gspo/clip_fraction']:.0%} of {step['gspo/num_tokens']:.0f} tokens clipped"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="what the trainer writes; a temporary folder where none is named")
    folder = parser.parse_args().folder
    if folder is not None:
        main(folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(folder)
