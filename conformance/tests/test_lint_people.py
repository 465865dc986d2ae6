"""`gspo lint` on configurations as people write them: whose they are, what is misspelt in them, what cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.cli import main
from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.detection import recognised
from gspo_conformance.words import UsageError

from .linted import lint, rules, written

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"
VERL = """adv_estimator=grpo
loss_mode=gspo
clip_ratio_low=0.0003 # as recommended by the paper
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=${adv_estimator} \\
  actor_rollout_ref.actor.policy_loss.loss_mode=${loss_mode} \\
  actor_rollout_ref.actor.clip_ratio_low=${clip_ratio_low} actor_rollout_ref.actor.clip_ratio_high=0.0004 actor_rollout_ref.rollout.n=16 \\
  actor_rollout_ref.actor.loss_agg_mode=%s "$@"
"""
GSPO = "importance_sampling_level='sequence', loss_type='grpo', epsilon=3e-4, epsilon_high=4e-4"


def _severities(record: dict[str, Any]) -> dict[str, str]:
    return {one["rule"]: one["severity"] for one in record["findings"] if one["severity"] != "note"}


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_a_configuration_is_recognised(path: Path) -> None:
    settings = read_configuration([str(path)]).settings
    assert recognised([str(path)], settings)[0] == path.name.partition(".")[0].removesuffix("-seed")
    own = [f"{key}={value}" for key, value in settings.items() if len(str(value)) < 40]
    try:
        name, _ = recognised(own, settings)
    except UsageError:
        return
    assert name == path.name.partition(".")[0].removesuffix("-seed") or name in ("trl", "verl", "roll", "slime")


def test_what_could_be_of_several_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", written(tmp_path, "c.yaml", "eps_clip: 3e-4\nlearning_rate: 1e-6\n")]) == 2
    assert "expected --dialect" in capsys.readouterr().err


def test_a_model_of_unsloth_in_a_program_of_trl_is_trls() -> None:
    text = "from trl import GRPOConfig; name = 'unsloth/Qwen3-4B'"
    assert recognised([text], {})[0] == "trl"
    assert recognised([f"from unsloth import FastLanguageModel; {text}"], {})[0] == "unsloth"


@pytest.mark.parametrize(("mode", "errors"), [("seq-mean-token-mean", {}), ("token-mean", {"aggregation": "error"})])
def test_the_style_of_verls_recipes(
    mode: str, errors: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = lint(capsys, written(tmp_path, "run.sh", VERL % mode))
    assert _severities(record) == errors
    assert record["code"] == len(errors)


@pytest.mark.parametrize(
    ("dialect", "setting", "meant"),
    [
        ("trl", "importance_sampling=sequence", "importance_sampling_level"),
        ("trl", "epsilon_low=3e-4", "epsilon"),
        ("trl", "scale_reward=group", "scale_rewards"),
        ("verl", "actor_rollout_ref.actor.loss_mode=gspo", "actor_rollout_ref.actor.policy_loss.loss_mode"),
        ("verl", "actor_rollout_ref.actor.clip_low=3e-4", "actor_rollout_ref.actor.clip_ratio_low"),
        ("openrlhf", "actor.loss_type=gspo", "actor.policy_loss_type"),
        ("openrlhf", "kl.init_coef=0", "algo.kl.init_coef"),
        ("skyrl", "trainer.loss_reduction=sequence_mean", "trainer.algorithm.loss_reduction"),
    ],
)
def test_a_key_that_was_meant(dialect: str, setting: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = lint(capsys, setting, "--dialect", dialect)
    found = [one for one in record["findings"] if one["rule"] == "unknown-key"]
    assert [one["fix"].partition("=")[0] for one in found] == [meant]


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [
        ("trl", "num_generations_eval per_device_eval_batch_size learning_rate max_grad_norm vllm_mode top_p seed"),
        ("verl", "data.val_batch_size actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu algorithm.kl_ctrl.kl_coef"),
        ("ms_swift", "max_length per_device_eval_batch_size eval_steps vllm_max_model_len temperature"),
        ("openrlhf", "actor.adam.lr train.micro_batch_size rollout.micro_batch_size algo.kl.target"),
        ("nemo_rl", "policy.train_micro_batch_size grpo.val_batch_size grpo.max_num_steps policy.precision"),
    ],
)
def test_the_other_settings_of_a_trainer_are_none(dialect: str, keys: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = lint(capsys, *(f"{key}=1" for key in keys.split()), "--dialect", dialect)
    assert "unknown-key" not in rules(record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"GRPOConfig({GSPO}, steps_per_generation=4)", {}),
        (f"GRPOConfig({GSPO}, steps_per_generation=N)", {"one-update": "warning"}),
        (f"GRPOConfig({GSPO}, gradient_accumulation_steps=N, steps_per_generation=8)", {}),
        (f"GRPOConfig({GSPO}, **more)", {"one-update": "warning"}),
        (f"GRPOConfig({GSPO})", {"one-update": "error"}),
    ],
)
def test_nothing_that_hangs_on_a_computed_setting_is_an_error(
    text: str, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = lint(capsys, written(tmp_path, "c.py", f"from trl import GRPOConfig\n{text}\n"))
    assert _severities(record) == expected
    assert record["code"] == int("error" in expected.values())


def test_a_computed_setting_without_a_part_in_the_objective_is_not_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"from trl import GRPOConfig\nGRPOConfig({GSPO}, steps_per_generation=4, output_dir=here(), beta=f())\n"
    assert main(["lint", written(tmp_path, "c.py", text)]) == 0
    told = capsys.readouterr().out
    assert "output_dir" not in told
    assert "c.py:2: beta" in told
    assert "as far as it was read" in told


@pytest.mark.parametrize(
    ("low", "high", "found"), [(4e-4, 3e-4, "warning"), (3e-4, 3e-4, None), (3e-3, 4e-3, "note"), (1e-5, 4e-4, "note")]
)
def test_ranges_that_are_not_the_papers(
    low: float, high: float, found: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    gspo = ["importance_sampling_level=sequence", "loss_type=grpo", "steps_per_generation=4"]
    told = lint(capsys, *gspo, f"epsilon={low}", f"epsilon_high={high}", "--dialect", "trl")["findings"]
    assert [one["severity"] for one in told] == ([found] if found else [])


@pytest.mark.parametrize(
    ("dialect", "settings", "rule"),
    [
        ("openrlhf", ["actor.policy_loss_type=gspo", "algo.kl.use_loss=true", "algo.kl.estimator=k3"], "penalty"),
        ("agilerl", ["loss_type=gspo", "loss_norm=episode", "beta=0.01"], "penalty"),
        ("trl", ["scale_rewards=none"], "scale"),
    ],
)
def test_settings_that_no_dialect_may_refuse(
    dialect: str, settings: list[str], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rule in rules(lint(capsys, *settings, "--dialect", dialect), "error", "warning")


@pytest.mark.parametrize(("name", "errors"), [("GSPO", set()), ("GRPO", {"ratio"})])
def test_a_class_that_is_an_algorithm(
    name: str, errors: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts the class GSPO of AgileRL, which sets the loss by itself, taken for token ratios."""
    faithful = "clip_coef=(0.9997, 1.0004), beta=0.0, mini_batch_size=64, batch_size=32, loss_norm='micro_batch'"
    rest = "adv_norm='mean_std', off_policy_token_mask_bounds=None, off_policy_sequence_mask_threshold=None"
    text = f"from agilerl.algorithms import {name}\nagent = {name}(actor_network=net(), {faithful}, {rest})\n"
    assert rules(lint(capsys, written(tmp_path, "train.py", text)), "error") == errors


@pytest.mark.parametrize(
    ("setting", "dialect", "words"),
    [
        ("loss_algo=gspo", "tunix", "GSPO is loss_algo='gspo-token'"),
        ("loss_type=gspo", "trl", "GSPO is importance_sampling_level='sequence'"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=GSPO", "verl", "policy_loss.loss_mode=gspo"),
        ("actor_rollout_ref.actor.loss_agg_mode=sequence-mean", "verl", "it has no such value"),
    ],
)
def test_a_value_that_was_meant_for_gspo(
    setting: str, dialect: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", setting, "--dialect", dialect]) == 2
    assert words in capsys.readouterr().err


def test_a_key_that_stands_twice_is_said_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "epsilon: 3e-4\nmore:\n  beta: 1\nepsilon: 0.2\nmore: {x: {y: 1, y: 2}}\nbeta: 0.0\n"
    record = lint(capsys, written(tmp_path, "c.yaml", text), "--dialect", "trl")
    found = [one for one in record["findings"] if one["rule"] == "repeated-key"]
    assert [one["key"] for one in found] == ["epsilon", "more", "more.x.y"]
    assert "the key epsilon stands in line 1 too" in found[0]["message"]


def test_a_key_that_stands_twice_in_a_group_of_settings_is_said(tmp_path: Path) -> None:
    (tmp_path / "finetune").mkdir()
    written(tmp_path / "finetune", "base.yaml", "rl:\n  kl_coef: 0.1\n  kl_coef: 0.2\n")
    found = read_configuration([written(tmp_path, "run.yaml", "defaults: [finetune: base]\n")])
    assert found.repeated == {"finetune.rl.kl_coef": 2}
