"""`gspo lint` on scripts that build their settings up, and on configurations that stand on other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.cli import main
from gspo_conformance.lint.configuration import read_configuration

from .linted import lint, rules, written

VERL = "python3 -m verl.trainer.main_ppo"
ACTOR = "actor_rollout_ref.actor."
BASE = "grpo: {normalize_rewards: true, use_leave_one_out_baseline: false}\nloss_fn: {ratio_clip_min: 3e-4, ratio_clip_max: 4e-4, reference_policy_kl_penalty: 0}\n"
CHILD = "defaults: base/nemo.yaml\nloss_fn: {sequence_level_importance_ratios: true, token_level_loss: false}\npolicy: {train_global_batch_size: 64}\n"


def _settings(path: Path, text: str) -> dict[str, Any]:
    return dict(read_configuration([written(path.parent, path.name, text)]).settings)


def _errors(capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    return rules(lint(capsys, *words), "error")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("swift rlhf --dataset owner/name#10000 \\\n  --beta 0.0 # none\n", {"dataset": "owner/name#10000", "beta": 0.0}),
        (f'A="\n  {ACTOR}a=1 \\\n  {ACTOR}b=2"\n{VERL} $A', {f"{ACTOR}a": 1, f"{ACTOR}b": 2}),
        (f'A="{ACTOR}a=1"\nA="$A {ACTOR}b=2"\n{VERL} $A', {f"{ACTOR}a": 1, f"{ACTOR}b": 2}),
        ('A="--beta 0.1"\nA+=" --epsilon 3e-4"\ntrl grpo $A', {"beta": 0.1, "epsilon": 3e-4}),
        (f"echo it's time\n{VERL} {ACTOR}a=1\necho it's done", {f"{ACTOR}a": 1}),
        (f'B=1\nif x; then\nB=2\nfi\n{VERL} {ACTOR}a=$B', {}),
        (f'{VERL} {ACTOR}a=`echo 1` {ACTOR}b=$(f "$(g)" x.y=3) {ACTOR}c=3', {f"{ACTOR}c": 3}),
        (f'srun -N 2 bash -lc "cd x && {VERL} {ACTOR}a=1" --b=2', {f"{ACTOR}a": 1}),
        (f"/bin/sh -e -c '{VERL} {ACTOR}a=2'", {f"{ACTOR}a": 2}),
        (f'A="{VERL} {ACTOR}a=1"\neval "$A {ACTOR}b=2"', {f"{ACTOR}a": 1, f"{ACTOR}b": 2}),
        ("bash run.sh --beta 0.1", {"beta": 0.1}),
        (f'A="never closed\n{VERL} {ACTOR}a=1\n', {f"{ACTOR}a": 1}),
    ],
)  # fmt: skip
def test_settings_that_a_script_builds_up_are_read(script: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert _settings(tmp_path / "run.sh", script) == expected


def test_a_configuration_stands_on_the_one_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "nemo.yaml").write_text(BASE, encoding="utf-8")
    (tmp_path / "run.yaml").write_text(CHILD, encoding="utf-8")
    (tmp_path / "run.sh").write_text(
        "python nemo_rl.py --config run.yaml loss_fn.ratio_clip_max=0.3\n", encoding="utf-8"
    )
    assert _errors(capsys, str(tmp_path / "run.yaml")) == set()
    assert _errors(capsys, str(tmp_path / "run.sh")) == {"clip-range"}


def test_what_stands_on_an_absent_file_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(CHILD, encoding="utf-8")
    (tmp_path / "run.sh").write_text(
        f"{VERL} --config-path=conf --config-name=mine {ACTOR}clip_ratio_low=0.2\n", encoding="utf-8"
    )
    (tmp_path / "on.sh").write_text(
        "bash examples/skyrl.sh trainer.policy_loss_type=gspo skyrl.a=1\n", encoding="utf-8"
    )
    for name in ("run.yaml", "run.sh", "on.sh"):
        words = [str(tmp_path / name), *(["--dialect", "skyrl"] if name == "on.sh" else [])]
        assert _errors(capsys, *words) == set()
        main(["lint", *words])
        assert "not read, because it is not here: " in capsys.readouterr().out
    (tmp_path / "nemo.yaml").write_text(BASE, encoding="utf-8")
    main(["lint", str(tmp_path / "nemo.yaml"), str(tmp_path / "run.yaml")])
    assert "nothing to say: this is the paper's objective" in capsys.readouterr().out


def test_what_a_defaults_list_chooses_beside_its_file_is_read(tmp_path: Path) -> None:
    """Hunts the defaults of a trainer told of a run whose group of settings says otherwise."""
    (tmp_path / "finetune").mkdir()
    files = {
        "base.yaml": "defaults: [finetune: base, streams: files, _self_]\nseed: 1\n",
        "finetune/base.yaml": "rl: {policy_loss: reinforce, epsilon_low: 2e-2, epsilon_high: '${.epsilon_low}'}\n",
        "finetune/gspo.yaml": "defaults: [base, _self_]\nrl: {policy_loss: gspo}\n",
        "middle.yaml": "defaults: [base, override finetune: gspo]\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = _settings(tmp_path / "run.yaml", "defaults: [middle, _self_]\nfinetune: {rl: {epsilon_low: 3e-4}}\n")
    assert {key: value for key, value in found.items() if ".rl." in key} == {
        "finetune.rl.policy_loss": "gspo",
        "finetune.rl.epsilon_low": 3e-4,
        "finetune.rl.epsilon_high": 3e-4,
    }
    text = 'defaults: [absent, a: ../base, b: "x\\0", run, 3, {c: 1}, d@e: base]\nb: 1\n'
    assert set(_settings(tmp_path / "run.yaml", text)) == {"defaults", "b"}


def test_files_that_stand_on_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("defaults: a.yaml\nb: 1\n", encoding="utf-8")
    assert _settings(tmp_path / "a.yaml", "defaults: [b.yaml, _self_]\na: 1\n")["b"] == 1


def test_the_asynchronous_trainer_of_verl_has_no_batch_to_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{VERL} {ACTOR}policy_loss.loss_mode=gspo data.train_batch_size=%d {ACTOR}ppo_mini_batch_size=16\n"
    for size, expected in ((0, False), (16, True)):
        (tmp_path / "run.sh").write_text(text % size, encoding="utf-8")
        assert ("one-update" in _errors(capsys, str(tmp_path / "run.sh"))) is expected


SLIME = """import slime.utils.external_utils.command_utils as U
args = "--rollout-batch-size 8 " "--n-samples-per-prompt 8 " f"--global-batch-size {16 * 2} "
U.execute_train(train_args=args + "--advantage-estimator gspo " "--eps-clip 3e-4 --eps-clip-high 4e-4")
"""


@pytest.mark.parametrize(
    ("name", "text", "trainer", "errors"),
    [
        ("run.py", SLIME, "slime", set()),
        ("c.yaml", "grpo: {importance_sampling_level: sequence, loss_type: grpo, num_iterations: 2}", "trl", {"inherited-clip-range"}),
        ("c.yaml", "model: {epsilon: 3e-4}\ntrl: {importance_sampling_level: sequence, epsilon: 3e-4, epsilon_high: 4e-4, num_iterations: 2, loss_type: grpo}", "trl", set()),
        ("run.py", "import subprocess\nsubprocess.run(['python', 'run_grpo_math.py', '--config', 'base.yaml', 'loss_fn.sequence_level_importance_ratios=true', 'loss_fn.token_level_loss=false'])", "nemo_rl", set()),
        ("run.sh", "A=(\n --advantage-estimator gspo\n --eps-clip 3e-4\n --eps-clip-high 4e-4\n --use-tis\n)\nsource \"$(cd -- \"$(dirname -- \"$0\")\" && pwd)/../run_base.sh\"", "slime", set()),
        ("run.sh", "A=(\n --advantage-estimator gspo\n --eps-clip 3e-4\n --eps-clip-high 4e-4\n --use-tis\n)\nsource models/m.sh\npython3 train.py ${A[@]}", "slime", {"group-size"}),
        ("run.sh", "python3 -m openrlhf.cli.train_ppo_ray --policy_loss_type gspo --enable_vllm_is_correction --eps_clip_low_high 3e-4 4e-4 --n_samples_per_prompt 8 --advantage_estimator group_norm", "openrlhf", {"correction-ignored"}),
        ("run.sh", "python3 -m openrlhf.cli.train_ppo_ray --policy_loss_type gspo --eps_clip_low_high 3e-4 4e-4 --n_samples_per_prompt 8 --advantage_estimator group_norm", "openrlhf", set()),
    ],
)  # fmt: skip
def test_the_other_ways_to_write_settings_down(
    name: str, text: str, trainer: str, errors: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = lint(capsys, written(tmp_path, name, text))
    assert (record["trainer"], rules(record, "error")) == (trainer, errors)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.sh", "python3 -m marti.cli.train_ppo_ray --policy_loss_type gspo --enable_vllm_is_correction --eps_clip_low_high 3e-4 4e-4 --n_samples_per_prompt 8 --advantage_estimator group_norm", "a configuration of MARTI"),
        ("run.sh", "python3 -m siirl.main_dag algorithm.adv_estimator=grpo actor_rollout_ref.actor.policy_loss.loss_mode=gspo", "a configuration of siiRL"),
        ("run.sh", "torchrun --nproc-per-node 8 examples/gsm8k_geo3k/train_colocate.py --advantage_estimator group_norm --n_samples_per_prompt 8 --init_kl_coef 0.01 --kl_estimator k3 --use_kl_loss --micro_train_batch_size 4 --rollout_batch_size 128 --actor_learning_rate 1e-6 --use_gspo", "a configuration of LightRFT"),
        ("run.py", "\"\"\"Laid out as slime's.\"\"\"\nfrom minirl.algos import GSPOConfig\nparser.add_argument('--n-samples-per-prompt', type=int, default=8)\nGSPOConfig(eps_clip=3e-4, eps_clip_high=4e-4)", "a configuration of miniRL"),
        ("c.yaml", "cluster: {num_nodes: 1, component_placement: {actor: 0-7}}\nalgorithm: {group_size: 16, clip_ratio_low: 0.2, clip_ratio_high: 0.28, adv_type: grpo}", "a configuration of RLinf"),
        ("c.yaml", "algorithm: {name: grpo, grpo: {num_generations: 8, kl_coeff: 0.0, clip_ratio: 0.2}}\nlogger: {project: lumenrl}", "a configuration of Lumen-RL"),
        ("c.yaml", "bundle: {_target_: unirl.models.qwen3.bundle.Qwen3Bundle.from_config}\nalgorithm: {clip_range: 0.2, num_generations: 8}", "a configuration of UniRL"),
        ("run.py", "from torchrl.objectives.llm import GRPOLoss\nGRPOLoss(policy, clip_epsilon=(3e-4, 4e-4), aggregation='prompt_mean', kl_to_ref_coeff=0.0)", "a configuration of TorchRL"),
        ("rl.yml", "rl: {num_generations: 2, num_iterations: 1, grpo_beta: 0.08, grpo_epsilon: 0.2, loss_algo: gspo-token, loss_agg_mode: sequence-mean-token-mean}", "a configuration of MaxText"),
        ("c.yaml", "kl_coef: 0.01\nuse_kl_loss: true\n" + "\n".join(f"unknown_{i}: {i}" for i in range(40)), "only 2 of the 42 keys here are keys of slime"),
    ],
)  # fmt: skip
def test_what_shares_a_few_keys_with_a_trainer_is_not_taken_for_its_own(
    name: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", written(tmp_path, name, text)]) == 2
    assert words in capsys.readouterr().err


def test_a_fork_with_keys_of_its_own_is_not_taken_for_what_it_began_as(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "rl_config.adv_estimator=group_norm", "rl_config.clip_ratio=3e-4"]) == 2
    assert "a configuration of MindSpeed-RL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        (f"{ACTOR}entropy_coeff=0.01", "entropy-bonus"),
        ("algorithm.use_kl_in_reward=True", "kl-in-reward"),
        ("algorithm.rollout_correction.bypass_mode=True", "denominator"),
        ("algorithm.rollout_correction.rollout_rs=seq_mean_k3", "filter"),
        ("algorithm.rollout_correction.rollout_is=sequence", "correction-level"),
        ("algorithm.rollout_correction.rollout_is=token", "correction"),
    ],
)
def test_what_verl_adds_to_the_loss_is_told(setting: str, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rule in rules(lint(capsys, f"{ACTOR}policy_loss.loss_mode=gspo", setting, "--dialect", "verl"))


def test_a_band_for_the_weights_of_verl_masks(capsys: pytest.CaptureFixture[str]) -> None:
    bounds = "algorithm.rollout_correction.rollout_is_threshold=0.5_2.0"
    record = lint(capsys, "algorithm.rollout_correction.rollout_is=token", bounds, "--dialect", "verl")
    (one,) = record["objective"]["correction"]
    assert (one["action"], one["low"], one["high"]) == ("mask", 0.5, 2.0)


GSPO = "importance_sampling_level='sequence', loss_type='grpo', epsilon=3e-4, epsilon_high=4e-4, num_iterations=2"
ARGUMENTS = "import argparse\nfrom trl import GRPOConfig\np = argparse.ArgumentParser()\np.add_argument('--eps-high', type=float, default=%s)\n"


@pytest.mark.parametrize(
    ("text", "high"),
    [
        (f"{ARGUMENTS % '4e-4'}args = p.parse_args()\nGRPOConfig({GSPO.replace('4e-4', 'args.eps_high')})", 4e-4),
        (f"{ARGUMENTS % '4e-4'}args, rest = p.parse_known_args()\nGRPOConfig({GSPO.replace('4e-4', 'args.eps_high')})", 4e-4),
        (f"{ARGUMENTS % '4e-4'}args = p.parse_args()\nargs.eps_high = f()\nGRPOConfig({GSPO.replace('4e-4', 'args.eps_high')})", None),
        (f"{ARGUMENTS % '4e-4'}args = p.parse_args()\nargs.eps_high *= 2\nGRPOConfig({GSPO.replace('4e-4', 'args.eps_high')})", None),
        (f"class C:\n    HIGH = 4e-4\nC.HIGH, LOW = f()\nGRPOConfig({GSPO.replace('4e-4', 'C.HIGH')})", None),
        (f"a = GRPOConfig({GSPO})\na.epsilon_high *= 2", None),
        (f"a = GRPOConfig({GSPO})\na.beta, a.epsilon_high = f()", None),
        (f"a = GRPOConfig({GSPO})\nif wide:\n    a.epsilon_high = 0.2\na.epsilon_high = 4e-4", 4e-4),
        (f"class C:\n    HIGH = 4e-4\nGRPOConfig({GSPO.replace('4e-4', 'C.HIGH')})", 4e-4),
        (f"HIGH = 4e-4\nprint(newer than this Python)\nGRPOConfig({GSPO.replace('4e-4', 'HIGH')})  # (", 4e-4),
    ],
)  # fmt: skip
def test_values_that_stand_elsewhere_in_a_program(text: str, high: float | None, tmp_path: Path) -> None:
    assert _settings(tmp_path / "run.py", text).get("epsilon_high") == high


def test_a_constant_stands_in_one_denominator_with_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["lint", "loss_type=dr_grpo", "importance_sampling_level=sequence", "--dialect", "trl"])
    assert "L = -1/(512·G) Σ_i Σ_t min(" in capsys.readouterr().out


def test_a_cell_that_is_no_python_does_not_hide_the_others(tmp_path: Path) -> None:
    sources = ["%%bash\npip install trl >= 0.2 && 01", f"from trl import GRPOConfig\nGRPOConfig({GSPO})"]
    cells = [{"cell_type": "code", "source": source} for source in sources]
    assert _settings(tmp_path / "run.ipynb", json.dumps({"cells": cells}))["epsilon"] == 3e-4


def test_a_program_without_settings_says_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gspo.py").write_text(
        "from trl import TrlParser, GRPOConfig\nTrlParser(GRPOConfig).parse()", encoding="utf-8"
    )
    assert main(["lint", str(tmp_path / "gspo.py")]) == 2
    assert "it takes its settings from a command line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("swift sft --model a --learning_rate 1e-4", "swift sft: no policy optimisation"),
        ("swift rlhf --rlhf_type dpo --beta 0.1", "rlhf_type 'dpo' is not of this family"),
        ("uv run examples/run_dpo.py --config x.yaml # nemo_rl", "run_dpo.py: no policy optimisation"),
        ("torchrun -m verl.trainer.fsdp_sft_trainer optim.lr=1e-5", "verl.trainer.fsdp_sft_trainer: no policy"),
        ("python -m openrlhf.cli.train_rm --learning_rate 9e-6", "openrlhf.cli.train_rm: no policy optimisation"),
        ("python -m molt.cli.train_sft --adam.lr 5e-6", "molt.cli.train_sft: no policy optimisation"),
        ("python train_async.py --loss-type sft_loss --hf-checkpoint a", "--loss-type sft_loss: no policy"),
        ("python train.py rllm/backend=tinker data.train_batch_size=32 training.group_size=8", "rLLM without verl"),
    ],
)
def test_other_training_is_not_read_as_policy_optimisation(
    script: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts `the importance ratio is per token` of supervised training, of preferences and of a reward model."""
    assert main(["lint", written(tmp_path, "run.sh", script)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("actor: {path: m, optimizer: {lr: 2e-5}}\nworker: {cmd: python -m areal.rpc}", "c.yaml: no policy optimisation that the dialect of areal"),
        ("model: {path: m}\nref: {path: m}\nworker: {cmd: python -m areal.rpc}", "c.yaml: no policy optimisation"),
        ("defaults: [{model@model: hf_model}]\ndata: {train_batch_size: 8, messages_key: m}\nprofiler: {_target_: verl.trainer.Profiler}", "data.messages_key: no policy"),
    ],
)  # fmt: skip
def test_a_file_of_supervised_training_or_of_preferences_is_not_read_either(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts defaults of a policy optimisation told of a file that has none of its keys, because it names the trainer."""
    assert main(["lint", written(tmp_path, "c.yaml", text)]) == 2
    assert said in capsys.readouterr().err
    assert "ratio" in _errors(capsys, written(tmp_path, "c.yaml", f"{text}\nnote: grpo\n"))


def test_a_script_that_trains_both_ways_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "swift sft --model a\nswift rlhf --rlhf_type grpo --epsilon 3e-4\n"
    assert "ratio" in _errors(capsys, written(tmp_path, "run.sh", script))


OWN = """
from trl import GRPOConfig, GRPOTrainer
parser = argparse.ArgumentParser()
parser.add_argument("--importance_sampling_level", default="token")
parser.add_argument("--num_generations", type=int, default=8)
args = parser.parse_args()
config = GRPOConfig(
    importance_sampling_level=args.importance_sampling_level, num_generations=args.num_generations,
    loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, gradient_accumulation_steps=2, steps_per_generation=8,
)
"""
RUN = "accelerate launch --num_processes 4 train.py --importance_sampling_level sequence --num_generations 16\n"


def test_a_script_stands_on_the_program_that_it_gives_flags_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts defaults of TRL told of a program that sets what the script does not."""
    script = written(tmp_path, "run.sh", RUN)
    apart = lint(capsys, script, "--dialect", "trl")
    assert apart["code"] == 0
    assert "aggregation" in rules(apart, "warning")
    written(tmp_path, "train.py", OWN)
    record = lint(capsys, script)
    assert not rules(record, "error", "warning")
    assert record["objective"]["surrogate"]["low"] == 3e-4


@pytest.mark.parametrize(
    "command",
    [
        "swift rlhf --external_plugins plugin.py --importance_sampling_level sequence",
        "torchrun swift/cli/rlhf.py --rlhf_type grpo --importance_sampling_level sequence",
    ],
)
def test_a_program_of_the_trainer_is_no_base(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one-update" in rules(lint(capsys, written(tmp_path, "run.sh", command)), "error")


def test_a_parser_of_the_family_has_the_defaults_of_the_trainer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, "train.py", "from trl import GRPOConfig, TrlParser\nparser = TrlParser((Own, GRPOConfig))\n")
    script = written(tmp_path, "run.sh", RUN)
    assert "aggregation" in rules(lint(capsys, script), "error")


def test_what_a_program_declares_is_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hunts `--delta` of somebody's own loop read as a setting of TRL."""
    flags = ("epsilon-high", "delta", "max-prompt-length", "gradient-accumulation-steps")
    text = "\n".join(f'parser.add_argument("--{flag}", type=float)' for flag in flags)
    text = f"parser = argparse.ArgumentParser()\n{text}\nif '--delta' in sys.argv: pass\n"
    program = written(tmp_path, "loop.py", text)
    assert main(["lint", program]) == 2
    assert "it takes its settings from a command line" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "_target_: verl.workers.config.CriticConfig\nppo_epochs: 2\nloss_agg_mode: token-mean\n",
        "rl: ebft\ntrl:\n  beta: 0.0\n  num_generations: 4\n  loss_type: grpo\n  epsilon: 0.2\n  max_completion_length: 9\n",
        "data:\n  train_batch_size: 64\n  max_response_length: 2048\n",
    ],
)
def test_a_file_beside_the_policys_is_told_apart(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", written(tmp_path, "part.yaml", text)]) == 2
    assert "no policy optimisation that" in capsys.readouterr().err
