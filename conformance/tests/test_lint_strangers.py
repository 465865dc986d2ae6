"""`gspo lint` on what people bring: notebooks with commands, programs with dictionaries, runs of forks, keys beside the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.cli import main

from .linted import lint, rules, written

ACTOR = "actor_rollout_ref.actor."
NESTED = """from verl import start
config = {
    "algorithm": {"adv_estimator": "grpo"},
    "data": {"train_batch_size": 512, "train_files": find()},
    "actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": "gspo"}, "clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4,
                                    "ppo_mini_batch_size": 128}, "rollout": {"n": 8}},
}
config["actor_rollout_ref"]["actor"]["loss_agg_mode"] = "token-mean"
start(config, actor_rollout_ref=None)
"""
FLAT = """import skyrl
CONFIG = {"trainer.algorithm.policy_loss_type": "gspo", "trainer.algorithm.loss_reduction": "sequence_mean",
          "trainer.algorithm.eps_clip_low": 3e-4, "trainer.algorithm.eps_clip_high": 4e-4,
          "trainer.algorithm.use_kl_loss": False}
"""
VERL = "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo "


def _notebook(*cells: str, output: str = "") -> str:
    code = [{"cell_type": "code", "source": cell, "outputs": [{"text": output}]} for cell in cells]
    return json.dumps({"cells": code})


def test_a_dictionary_of_sections_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = lint(capsys, written(tmp_path, "train.py", NESTED))
    assert record["trainer"] == "verl"
    assert record["objective"]["ratio"] == "gspo_token"
    assert rules(record, "error") == {"aggregation"}
    assert [one.rpartition(": ")[2] for one in record["computed"]] == ["data.train_files"]
    text = "import easydel as ed\ned.run({'trainer': {'trainer_type': 'grpo', 'beta': 0.5, 'loss_type': 'dapo'}})\n"
    record = lint(capsys, written(tmp_path, "easy.py", text))
    assert (record["trainer"], record["objective"]["penalty"]["coefficient"]) == ("easydel", 0.5)
    record = lint(capsys, written(tmp_path, "flat.py", FLAT))
    assert (record["trainer"], rules(record, "error")) == ("skyrl", set())


@pytest.mark.parametrize("cell", ["!{}\\\n  {}", "%%bash\ncd verl\n{} {}"])
def test_the_commands_of_a_notebook_are_read(cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = cell.format(
        VERL, f"{ACTOR}policy_loss.loss_mode=gspo {ACTOR}clip_ratio_low=3e-4 {ACTOR}clip_ratio_high=4e-4"
    )
    for cells in (("!pip install --upgrade verl", "import os\nprint(os.name)", text), (text,)):
        record = lint(capsys, written(tmp_path, "run.ipynb", _notebook(*cells)))
        assert record["trainer"] == "verl"
        assert record["objective"]["surrogate"]["low"] == 3e-4


def test_what_a_notebook_has_printed_neither_names_a_trainer_nor_makes_it_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("from trl import GRPOConfig\n", "args = GRPOConfig(importance_sampling_level='sequence')")
    text = _notebook(*cells, output="import unsloth actor_rollout_ref " + "x" * 1_500_000)
    assert lint(capsys, written(tmp_path, "run.ipynb", text))["trainer"] == "trl"


def test_the_overrides_that_hydra_keeps_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"- algorithm.adv_estimator=grpo\n- {ACTOR}policy_loss.loss_mode=gspo\n- ++{ACTOR}clip_ratio_high=4e-4\n"
    record = lint(capsys, written(tmp_path, "overrides.yaml", text))
    assert record["objective"]["surrogate"]["high"] == 4e-4


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("worker.py", "from verl.trainer import x\nmodel = SamplingConfig(temperature=1.0)", "no setting of verl in this"),
        ("run.yaml", "ppo:\n  ppo_n_minibatches: 4\n  eps_clip: 0.2\n  gen: {n: 8}", "a configuration of AReaL up to 0.3"),
        ("run.yaml", "rl_config:\n  clip_ratio: 0.2\n  adv_estimator: group_norm", "a configuration of MindSpeed-RL"),
        ("run.yaml", "# later\n", "run.yaml: no setting in it"),
        ("run.sh", "set -x\n", "run.sh: no setting in it"),
        ("run.yaml", "speed: 3\nwheels: 4", "none of the 2 keys here is one of agilerl, areal"),
        ("run.yaml", "advantage_estimator: gspo\nwheels: 4\neps_clip: much\n", "dialect: "),
        ("run.sh", "python train.py --advantage-estimator gspo --eps-clip 4e-4x", "eps_clip = '4e-4x': slime cannot mean"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(
    name: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", written(tmp_path, name, text)]) == 2
    assert words in capsys.readouterr().err


def test_a_configuration_that_sets_nothing_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = lint(capsys, written(tmp_path, "run.sh", "swift rlhf --rlhf_type grpo --model here\n"))
    assert [one["rule"] for one in record["findings"]][-1] == "defaults"


@pytest.mark.parametrize(
    ("setting", "rule"),
    [("loss_reduction=token_mean_legacy", "micro-batches"), ("loss_reduction=seq_mean_token_sum_norm", "refused")],
)
def test_reductions_of_skyrl_that_depend_on_more(setting: str, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = lint(capsys, "trainer.algorithm.policy_loss_type=gspo", f"trainer.algorithm.{setting}")
    assert record["trainer"] == "skyrl"
    assert {rule, "aggregation"} <= rules(record, "error")


@pytest.mark.parametrize(
    ("dialect", "setting", "rule"),
    [
        ("verl", "algorithm.filter_groups.enable=True", "dynamic-sampling"),
        ("verl", "reward_model.overlong_buffer.enable=True", "overlong-penalty"),
        ("trl", "mask_truncated_completions=True", "overlong-filter"),
        ("unsloth", "mask_truncated_completions=True", "overlong-filter"),
        ("ms_swift", "dynamic_sample=true", "dynamic-sampling"),
        ("nemo_rl", "grpo.use_dynamic_sampling=true", "dynamic-sampling"),
        ("skyrl", "trainer.algorithm.dynamic_sampling.type=filter", "dynamic-sampling"),
        ("openrlhf", "algo.dynamic_filtering_enable=true", "dynamic-sampling"),
        ("openrlhf", "overlong_buffer_len=1024", "overlong-penalty"),
        ("slime", "dynamic_sampling_filter_path=a.b.keep", "dynamic-sampling"),
        ("areal", "actor.overlong_reward_penalty=true", "overlong-penalty"),
        ("roll", "max_len_mask=true", "overlong-filter"),
        ("roll", "difficulty_mask=true", "dynamic-sampling"),
    ],
)
def test_what_is_done_to_rewards_and_responses_is_noted(
    dialect: str, setting: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def notes(*words: str) -> set[str]:
        return rules(lint(capsys, *words, "--dialect", dialect), "note")

    key = setting.partition("=")[0]
    assert rule in notes(setting)
    assert rule not in notes(f"{key}=null")


def test_every_key_of_areals_example_has_an_effect(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("actor.group_size=4", "actor.dynamic_sampling=true", "--dialect", "areal", "--trainer-version", "981e3f68")
    found = lint(capsys, "actor.importance_sampling_level=sequence", *words)["findings"]
    assert {"actor.group_size", "actor.dynamic_sampling"} <= {one["key"] for one in found}


def test_every_setting_of_a_finding_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "python train.py --hf-checkpoint m \\\n --advantage-estimator gspo \\\n --eps-clip 0.1 --eps-clip-high 0.2 \\\n --use-kl-loss --kl-loss-coef 0.1"
    file = written(tmp_path, "run.sh", text)
    record = lint(capsys, file)
    places = {one["rule"]: one["places"] for one in record["findings"]}
    assert places["clip-range"] == [f"{file}:3"]
    assert places["penalty"] == [f"{file}:4"]


@pytest.mark.parametrize(
    "key", ["grpo.num_val_generations_per_prompt", "algorithm.rollout_correction.rollout_rs_threshold"]
)
def test_settings_that_a_trainer_has_are_not_called_misspelt(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    dialect = "nemo_rl" if key.startswith("grpo") else "verl"
    assert "unknown-key" not in rules(lint(capsys, f"{key}=2", "--dialect", dialect))


def test_baselines_are_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "loss_fn.ratio_clip_min=3e-4", "--dialect", "nemo_rl"]) == 1
    text = capsys.readouterr().out
    assert "leave_one_out_std" not in text
    assert "the baseline is the mean of the other responses" in text


@pytest.mark.parametrize(
    ("words", "corrections"),
    [
        (("algo.advantage.is_correction_level=token",), [("token", "mask", 0.5, 5.0)]),
        (("enable_vllm_is_correction=true",), [("token", "clamp", 0.5, 5.0)]),
        (("algo.advantage.is_correction_enable=true", "algo.advantage.is_correction_type=icepop"), [("token", "mask", 0.5, 5.0)]),
        (("algo.advantage.is_correction_level=seq",), [("token", "clamp", None, None), ("geometric", "reject", 0.5, 5.0)]),
    ],
)  # fmt: skip
def test_the_corrections_of_openrlhf_are_read(
    words: tuple[str, ...], corrections: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    record = lint(capsys, *words, "--dialect", "openrlhf")
    found = record["objective"]["correction"]
    assert [(one["level"], one["action"], one["low"], one["high"]) for one in found] == corrections
    assert (" ρ_it = " if len(corrections) == 1 else " ρ2_it = ") in record["formula"]
    assert lint(capsys, *words, "policy_loss_type=gspo", "--dialect", "openrlhf")["objective"]["correction"] == []


def test_former_names_of_openrlhf_are_read_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("advantage_estimator=grpo", "use_kl_loss=true", "use_kl_estimator_k3=true", "init_kl_coef=0.01")
    record = lint(capsys, *words, "--dialect", "openrlhf")
    assert record["objective"]["penalty"]["estimator"] == "k3"
    assert record["advantages"]["center"] == "mean"
    assert "refused" in rules(record, "error")


def test_a_program_that_makes_no_trainer_of_the_family_is_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import tunix\noptions = MetricsConfig(folder='here')\n"
    assert main(["lint", written(tmp_path, "part.py", text)]) == 2
    assert "no setting of tunix in this program" in capsys.readouterr().err
    text += "learner = GRPOLearner(config=RolloutConfig(temperature=1.0))\n"
    assert lint(capsys, written(tmp_path, "part.py", text))["trainer"] == "tunix"


def test_a_penalty_of_nothing_is_not_in_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    record = lint(capsys, f"{ACTOR}use_kl_loss=True", f"{ACTOR}kl_loss_coef=0.0", "--dialect", "verl")
    assert "π_ref" not in record["formula"]


def test_rolls_pipeline_for_agents_has_keys_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "pg_clip: 0.2\nadv_estimator: reinforce\nreward_normalization: {grouping: traj_group_id, method: mean_std}\n"
    file = written(tmp_path, "agents.yaml", text)
    record = lint(capsys, file)
    assert (record["objective"]["ratio"], record["advantages"]["center"]) == ("token", "mean")
    record = lint(capsys, file, "ratio_type=segment")
    assert (record["objective"]["ratio"], record["advantages"]["scale"]) == ("sequence", "std")
    record = lint(capsys, file, "importance_sampling=seq")
    assert record["objective"]["ratio"] == "token"
    assert "key-ignored" in rules(record, "error")
    assert lint(capsys, "importance_sampling=seq", "--dialect", "roll")["objective"]["ratio"] == "sequence"


def test_the_worst_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "python train.py --hf-checkpoint m --num-steps-per-rollout 1 --n-samples-per-prompt $GROUP --use-opsm"
    found = lint(capsys, written(tmp_path, "run.sh", text))["findings"]
    order = [("error", "warning", "note").index(one["severity"]) for one in found]
    assert order == sorted(order)
    assert len(set(order)) > 1


def test_an_array_behind_a_switch_is_not_its_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "python3 train.py --advantage-estimator gspo --calculate-per-token-loss \\\n ${MODEL_ARGS[@]} ${LORA_ARGS[@]}\n"
    )
    record = lint(capsys, written(tmp_path, "run.sh", text))
    assert record["objective"]["aggregation"]["mode"] == "token_mean"
    text = "python3 train.py --advantage-estimator gspo --use-tis $@"
    record = lint(capsys, written(tmp_path, "run.sh", text))
    assert record["objective"]["correction"]
    assert "Σ_t ρ_it min(s_i A_i" in record["formula"]


def test_the_configuration_of_a_server_beside_the_training_is_no_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("clip_ratio_low=3e-4", "clip_ratio_high=4e-4", "use_kl_loss=False", "ppo_epochs=1", "entropy_coeff=0")
    text = f"python -m tools.serve --config tools.json &\n{VERL} {' '.join(ACTOR + key for key in keys)}\n"
    record = lint(capsys, written(tmp_path, "run.sh", text))
    assert record["computed"] == []
    assert "ratio" in rules(record, "error")


def test_verl_divides_by_the_width_where_no_scale_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"{ACTOR}policy_loss.loss_mode=gspo", f"{ACTOR}loss_agg_mode=seq-mean-token-sum-norm", "--dialect", "verl")
    record = lint(capsys, *words, "data.max_response_length=4096")
    assert record["objective"]["aggregation"] == {"mode": "sequence_mean_token_sum", "count": "all", "constant": 4096.0}
    assert "padded-width" in rules(record)
    record = lint(capsys, *words, f"{ACTOR}loss_scale_factor=100")
    assert record["objective"]["aggregation"]["constant"] == 100.0
    assert "padded-width" not in rules(record)


@pytest.mark.parametrize("dialect", ["trl", "ms_swift", "easydel", "liger"])
def test_a_clip_range_is_no_bound_of_cispo(dialect: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("loss_type=cispo", "importance_sampling_level=token", "--dialect", dialect)
    assert "cispo-bound" in rules(lint(capsys, *words), "error")
    record = lint(capsys, *words, "epsilon_high=5.0")
    assert "cispo-bound" not in rules(record, "error")
    assert record["objective"]["surrogate"] == {"kind": "cispo", "low": None, "high": 4.0}


@pytest.mark.parametrize(("value", "told"), [("0.2", False), ("0.1", True)])
def test_a_clip_ratio_that_changes_nothing_is_no_error(
    value: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    record = lint(capsys, f"{ACTOR}clip_ratio={value}", "--dialect", "verl")
    assert ("clip-range-ignored" in rules(record, "error")) == told


def test_corrections_by_other_code_or_former_names_are_no_reason_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("advantage_estimator=gspo", "use_tis=true", "custom_tis_function_path=mine.weights", "--dialect", "slime")
    assert "custom-code" in {one["rule"] for one in lint(capsys, *words)["findings"]}
    own = "trainer.algorithm."
    record = lint(capsys, f"{own}policy_loss_type=gspo", f"{own}use_tis=true", f"{own}tis_imp_ratio_cap=2.0")
    assert [(one["level"], one["action"], one["high"]) for one in record["objective"]["correction"]] == [
        ("token", "clamp", 2.0)
    ]
    record = lint(capsys, f"{own}off_policy_correction.outlier_token_is_threshold_high=100")
    assert "filter" in rules(record)
    words = (f"{ACTOR}use_kl_loss=True", f"{ACTOR}kl_loss_type=low_var_kl+", "--dialect", "verl")
    assert lint(capsys, *words)["objective"]["penalty"]["estimator"] == "k3_plus"


def test_a_document_about_a_configuration_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hunts defaults told of a page that shows settings: its prose is no script that leaves them as they come."""
    page = written(
        tmp_path, "gspo.md", "# GSPO\nIn ROLL:\n\nimportance_sampling: seq\nnum_return_sequences_in_group: 8\n"
    )
    assert main(["lint", page]) == 2
    assert "no setting of roll in this document" in capsys.readouterr().err
