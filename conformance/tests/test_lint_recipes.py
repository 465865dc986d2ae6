"""`gspo lint` on the configurations in examples/configs: what the seed documents show, and a recipe of the paper for every trainer."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import gspo_conformance
from gspo_conformance.cli import main
from gspo_conformance.trainers.room import rooms

from .linted import lint, rules

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"
# What no setting of the trainer mends: the only aggregation of AReaL and Molt is the mean over tokens, the eps of OpenRLHF and Molt 1e-9,
# AgileRL's 1e-8, EasyDeL and mlx-lm-lora make one update of a rollout, TextPolicy guesses lengths,
# PipelineRL weighs a response by its length, EasyR1 a micro-batch by its tokens.
REMAINS = {
    "areal": {("error", "aggregation")},
    "openrlhf": {("warning", "eps")},
    "agilerl": {("warning", "eps")},
    "easydel": {("error", "one-update"), ("warning", "clip-inverted")},
    "easyr1": {("warning", "micro-batches")},
    "mlx_lm_lora": {("error", "one-update")},
    "molt": {("error", "aggregation"), ("warning", "eps")},
    "pipelinerl": {("error", "aggregation"), ("warning", "baseline")},
    "textpolicy": {
        ("error", "guessed-lengths"),
        *(("warning", rule) for rule in ("clip-both-sides", "batch-baseline", "scale")),
    },
}
ROLL = ["roll-seed.yaml", "--dialect", "roll", "--trainer-version", "c0c0d2b1"]
AREAL = ["areal-seed.yaml", "--dialect", "areal", "--trainer-version", "981e3f68"]
TRL = ["trl-seed.py", "--dialect", "trl"]


def _lint(capsys: pytest.CaptureFixture[str], words: Iterable[str]) -> dict[str, Any]:
    name, *options = words
    return lint(capsys, str(CONFIGS / name), *options)


@pytest.mark.parametrize("name", sorted(rooms()))
def test_the_recipe_of_every_trainer_raises_no_alarm(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(path.name for path in CONFIGS.glob(f"{name}.*"))
    assert len(files) == 1, f"examples/configs: expected one recipe for {name}, got {files}"
    record = _lint(capsys, [files[0], "--dialect", name])
    remains = REMAINS.get(name, set())
    alarms = {(one["severity"], one["rule"]) for one in record["findings"] if one["severity"] != "note"}
    assert alarms == remains, record["findings"]
    assert record["code"] == int(any(severity == "error" for severity, _ in remains))


def test_the_seed_of_roll(capsys: pytest.CaptureFixture[str]) -> None:
    """Its page promises a group baseline that its keys do not give, and multiplies every response by its length."""
    record = _lint(capsys, ROLL)
    assert record["code"] == 1
    assert rules(record, "error") == {"aggregation", "inherited-clip-range", "dual-clip", "group-baseline"}
    assert {"penalty", "whitening", "advantage-clip", "reward-clip", "scale"} <= rules(record, "warning")
    told = {one["rule"]: one for one in record["findings"]}
    assert "1.4" in told["dual-clip"]["message"]
    assert told["aggregation"]["key"] == "loss_agg_mode"
    assert told["aggregation"]["fix"] == "loss_agg_mode: seq-mean-token-mean"


def test_the_seed_of_roll_in_the_version_of_a_year_later(capsys: pytest.CaptureFixture[str]) -> None:
    """Hunts keys that a version no longer reads: they are dropped without a word."""
    record = _lint(capsys, [*ROLL[:3], "reward_norm=group"])
    assert "reward_norm" in {one["key"] for one in record["findings"] if one["rule"] == "key-ignored"}


def test_the_seed_of_areal(capsys: pytest.CaptureFixture[str]) -> None:
    record = _lint(capsys, AREAL)
    assert record["code"] == 1
    assert rules(record, "error") == {"aggregation", "inherited-clip-range"}
    assert rules(record, "warning") == {"whitening", "decoupled-denominator", "behaviour-cap"}
    fix = next(one["fix"] for one in record["findings"] if one["rule"] == "aggregation")
    assert "no setting" in fix


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("actor.reward_norm.group_size=1", "group-size"),
        ("actor.kl_ctl=0.1", "kl-in-reward"),
        ("actor.ppo_n_minibatches=1", "one-update"),
        ("actor.eps_clip=0.4", "clip-range"),
    ],
)
def test_what_else_an_areal_configuration_can_get_wrong(
    override: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rule not in rules(_lint(capsys, AREAL), "error", "warning")
    assert rule in rules(_lint(capsys, [*AREAL, override]), "error", "warning")


def test_the_seed_of_trl_raises_no_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    record = _lint(capsys, TRL)
    assert record["code"] == 0
    assert not record["findings"]


def test_the_seed_of_trl_without_mini_batches_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    record = _lint(capsys, [*TRL, "steps_per_generation=1"])
    assert record["code"] == 1
    assert rules(record, "error", "warning", "note") == {"one-update"}


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("verl.yaml", "actor_rollout_ref.rollout.n=1"),
        ("roll.yaml", "num_return_sequences_in_group=1"),
        ("skyrl.yaml", "generator.n_samples_per_prompt=1"),
        ("nemo_rl.yaml", "grpo.num_generations_per_prompt=1"),
        ("ms_swift.yaml", "num_generations=1"),
        ("slime.sh", "n_samples_per_prompt=1"),
    ],
)
def test_one_response_to_a_prompt_is_no_group(file: str, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Hunts a baseline that is promised where nothing is there to compare with."""
    record = _lint(capsys, [file, setting])
    told = next(one for one in record["findings"] if one["rule"] == "group-size")
    assert record["code"] == 1
    assert (told["severity"], told["key"], told["clause"]) == ("error", setting.partition("=")[0], "GSPO-ADV-4")


def test_a_group_of_one_is_the_default_of_verl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (CONFIGS / "verl.yaml").read_text(encoding="utf-8").splitlines()
    alone = tmp_path / "verl.yaml"
    alone.write_text(
        "\n".join(line for line in lines if not line.lstrip().startswith(("rollout:", "n: "))), encoding="utf-8"
    )
    assert main(["lint", str(alone)]) == 1
    assert "actor_rollout_ref.rollout.n=8" in capsys.readouterr().out


def test_agents_of_roll_are_grouped_by_other_keys(capsys: pytest.CaptureFixture[str]) -> None:
    agents = ["adv_estimator=agentic_reinforce", "reward_normalization.grouping=traj_group_id"]
    agents += ["reward_normalization.method=mean_std", "ratio_type=segment", "--dialect", "roll"]
    assert "group-size" not in rules(lint(capsys, *agents), "error")


def test_what_is_said_of_several_trainers_names_one_clause() -> None:
    """Hunts a finding that sends its reader to a clause about something else."""
    clauses: dict[str, set[str]] = {}
    for path in sorted((Path(gspo_conformance.__file__).parent / "trainers").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
                said = [part.value if isinstance(part, ast.Constant) else "" for part in call.args]
                if len(said) > 4:
                    clauses.setdefault(str(said[0]), set()).add(str(said[4]))
    for rule in ("denominator", "old-policy", "sampler-as-old"):
        assert clauses[rule] == {"GSPO-DATA-5"}
    assert clauses["kl-in-reward"] == {"GSPO-REWARD-4"}
    assert clauses["tiny-eps"] == {"GSPO-ADV-3"}
    assert clauses["step-wise"] == clauses["segment-ratio"] == {"GSPO-DATA-4"}


def test_a_clip_range_near_the_papers_is_not_called_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    for setting, rest in (("beta=0", ""), ("epsilon_high=3e-4", ", with a clip range of its own")):
        assert main(["lint", str(CONFIGS / "trl.py"), setting]) == 0
        assert f"nothing to say: this is the paper's objective{rest}\n" in capsys.readouterr().out
