"""Real training with TRL: three steps of a tiny random policy, beside TRL's own GSPO, parameter by parameter."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import gspo_torch as gspo

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (pip install trl==1.16.0)"),
    pytest.mark.filterwarnings("ignore"),
]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
PAPER = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4}
WIDE = {"epsilon": 0.05, "epsilon_high": 0.1, "importance_sampling_level": "sequence"}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _policy(folder: Path) -> Any:
    """One of random weights, from a folder where TRL finds the reference policy too."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    policy = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    policy.save_pretrained(folder)
    return Qwen2ForCausalLM.from_pretrained(folder)


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [text.count("a") + 0.1 * len(text.split()) for text in completions]


def _run(kind: str, folder: Path, objective: Any = None, **settings: Any) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """The trainer after three optimiser steps of two micro-batches, and the parameters after each."""
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    from gspo_torch.integrations.trl import GSPOConfig, GSPOTrainer

    seen: list[dict[str, torch.Tensor]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            seen.append({name: value.detach().clone() for name, value in model.named_parameters()})

    common = {
        "output_dir": str(folder / kind),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "num_iterations": 2,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 2,
    }
    ours = kind == "ours"
    trainer = (GSPOTrainer if ours else trl.GRPOTrainer)(
        _policy(folder / "policy"),
        _reward,
        args=(GSPOConfig if ours else trl.GRPOConfig)(**(common | settings)),
        train_dataset=Dataset.from_dict({"prompt": ["a b c", "d e", "f g h", "x y"] * 4}),
        processing_class=_tokenizer(),
        callbacks=[Watch()],
        **({"objective": objective} if ours else {}),
    )
    trainer.train()
    return trainer, seen


def _logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    "settings",
    [
        PAPER,
        WIDE | {"loss_type": "grpo"},
        WIDE | {"loss_type": "grpo", "beta": 0.3},
        WIDE | {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False, "delta": 1.15},
        WIDE | {"loss_type": "dapo", "beta": 0.3},
        WIDE | {"loss_type": "dr_grpo"},
        WIDE | {"loss_type": "luspo", "learning_rate": 0.1},
        WIDE | {"loss_type": "grpo", "off_policy_mask_threshold": 0.01},
    ],
    ids=lambda settings: "-".join(f"{name}={value}" for name, value in settings.items() if name not in WIDE) or "paper",
)
def test_three_steps_equal_trls(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs, expected = _run("theirs", tmp_path, **settings)
    ours, found = _run("ours", tmp_path, **settings)
    assert len(found) == len(expected) == 3
    assert any((found[0][name] != found[2][name]).any() for name in found[0])
    for step, parameters in enumerate(expected):
        for name, value in parameters.items():
            torch.testing.assert_close(found[step][name], value, rtol=1e-5, atol=1e-6, msg=f"{name} after step {step}")
    assert _logged(ours, "loss") == pytest.approx(_logged(theirs, "loss"), rel=1e-5, abs=1e-6)
    assert _logged(ours, "grad_norm") == pytest.approx(_logged(theirs, "grad_norm"), rel=1e-4, abs=1e-6)
    assert _logged(ours, "entropy") == pytest.approx(_logged(theirs, "entropy"), rel=1e-5)


def test_the_second_iteration_is_off_policy_and_clipped(tmp_path: Path) -> None:
    trainer, _ = _run("ours", tmp_path)
    assert _logged(trainer, "gspo/ratio_is_one") == [1.0, 0.0, 1.0]
    assert _logged(trainer, "gspo/clip_fraction")[1] > 0.5
    assert _logged(trainer, "gspo/num_sequences") == [8.0, 8.0, 8.0]


def test_objectives_that_trl_has_not(tmp_path: Path) -> None:
    """Token mean within each group: the groups survive TRL's shuffle into micro-batches."""
    trainer, seen = _run("ours", tmp_path, objective=gspo.Objective.dapo())
    assert trainer.objective == gspo.Objective.dapo()
    assert all(torch.isfinite(value).all() for value in seen[2].values())
    assert _logged(trainer, "gspo/clip_fraction") != [0.0] * 3


def test_completions_that_come_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """Generation every micro-batch, two micro-batches a step: the normaliser of the paper's mean is known all the same."""
    settings = {"steps_per_generation": 1, "num_iterations": 1}
    _, expected = _run("theirs", tmp_path, **(PAPER | settings))
    _, found = _run("ours", tmp_path, **settings)
    for name, value in expected[2].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="gradient_accumulation_steps: expected a divisor of"):
        _run("ours", tmp_path, **(settings | {"loss_type": "dapo"}))
    penalty = gspo.Penalty("k3", 0.1, aggregation=gspo.Aggregation("token_mean"))  # its M is the tokens of the step
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps: expected a divisor of .*token_mean"):
        _run("ours", tmp_path, objective=gspo.Objective.gspo().replace(penalty=penalty), **settings, beta=0.1)


@pytest.mark.parametrize(
    ("settings", "objective", "message"),
    [
        ({"importance_sampling_level": "token"}, None, "args: expected importance_sampling_level 'sequence'"),
        ({"loss_type": "cispo"}, None, "loss_type: expected one of"),
        ({"entropy_coef": 0.1}, None, "entropy_coef: expected 0.0 with GSPOTrainer"),
        ({"top_entropy_quantile": 0.5}, None, "top_entropy_quantile: expected 1.0"),
        ({"beta": 0.1}, gspo.Objective.gspo(), "beta: expected 0, since TRL makes log-probabilities of the reference"),
        ({}, gspo.Objective.gspo().replace(penalty=gspo.Penalty()), "beta: expected a coefficient, since TRL makes"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], objective: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _run("ours", tmp_path, objective=objective, **settings)


def test_the_configuration_has_the_papers_defaults_and_survives_saving(tmp_path: Path) -> None:
    from gspo_torch.integrations.trl import GSPOConfig, objective_of

    args = GSPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    assert objective_of(args) == gspo.Objective.gspo()
    torch.save(args, tmp_path / "args.bin")
    assert torch.load(tmp_path / "args.bin", weights_only=False).to_dict() == args.to_dict()


def over_two_processes(folder: Path, loss_type: str) -> None:
    """The same comparison where DDP averages gradients; responses of both processes are one union."""
    settings = WIDE | {"loss_type": loss_type}
    _, expected = _run("theirs", folder, **settings)
    trainer, found = _run("ours", folder, **settings)
    for ours, theirs in zip(found, expected):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert trainer.accelerator.num_processes == 2
    assert _logged(trainer, "gspo/num_sequences") == [16.0, 16.0, 16.0]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_two_processes_equal_trls(loss_type: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        variables = os.environ | address | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", __file__, str(tmp_path / rank), loss_type]
        ranks.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    for rank in ranks:
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors.decode()[-3000:]


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy
    import sys

    monkeypatch.setattr(sys, "argv", ["trl_trainer.py", str(tmp_path)])
    runpy.run_path(str(Path(__file__).parents[3] / "examples" / "trl_trainer.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(printed) == 3
    assert "100% of" in printed[1]


if __name__ == "__main__":
    import sys

    over_two_processes(Path(sys.argv[1]), sys.argv[2])
