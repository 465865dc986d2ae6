"""Records `trl/`: six optimiser steps of TRL's own GRPOTrainer on a tiny random policy, GSPO switched on as its documentation says.

With the Python of `gspo trainers setup trl`, PYTHONPATH=.:backends: python conformance/tests/traces/make_trl.py [FOLDER]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from gspo_torch.integrations.trl_record import recorded

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]


def main(folder: Path) -> None:
    """Trains and records; what was in the folder is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        args = trl.GRPOConfig(
            output_dir=scratch,
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=3e-4,
            epsilon_high=4e-4,
            beta=0.0,
            num_generations=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            steps_per_generation=4,
            max_completion_length=12,
            max_steps=6,
            optim="sgd",
            learning_rate=0.005,
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=3,
        )
        trainer = recorded(trl.GRPOTrainer, folder, gradient=True)(
            _policy(),
            _reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["a b c", "d e", "f g h", "x y"] * 4}),
            processing_class=_tokenizer(),
        )
        trainer.train()


def _policy() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS),
            num_key_value_heads=1,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            **sizes,
        )
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [text.count("a") + 0.1 * len(text.split()) for text in completions]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("trl"))
