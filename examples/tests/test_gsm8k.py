"""GSM8K: what counts as an answer, and the training program on a tiny random model."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import pytest
import torch

import gsm8k_gspo
from gsm8k_gspo import Configuration, Trainer
from gsm8k_problems import final_number, load_problems, reward

FOLDER = Path(gsm8k_gspo.__file__).parent
PROBLEMS = FOLDER / "problems.jsonl"
TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("#### 42", "42"),
        ("####42", "42"),
        ("so it is 42.\n#### 42.", "42"),
        ("#### 1,260", "1260"),
        ("#### 1,234,567.50", "1234567.5"),
        ("#### $18", "18"),
        ("#### $ 1,000 in total", "1000"),
        ("#### 18 dollars", "18"),
        ("#### 5%", "5"),
        ("#### -8", "-8"),
        ("#### \u22128 degrees", "-8"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### = 7", "7"),
        ("#### 6.75", "6.75"),
        ("#### .5", "0.5"),
        ("#### 3.0", "3"),
        ("#### 1\n#### 2", "2"),
        ("#### 1 #### 2", "2"),
        ("#### 3\nwhich is 4", "3"),
    ],
)
def test_a_number_behind_the_last_mark_is_the_answer(response: str, number: str) -> None:
    assert final_number(response) == Decimal(number)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "42",
        "#### ",
        "####\n42",
        "#### forty-two",
        "### 42",
        "#### 1,2",
        "#### 1/2",
        "#### 1.000.000",
        "#### 12:30",
        "#### 7\n####",
    ],
)
def test_anything_else_is_no_answer(response: str) -> None:
    assert final_number(response) is None
    assert reward(response, "#### 42") == 0


def test_numbers_are_compared_and_not_words() -> None:
    assert reward("#### $1,260.00", "15 * 84 = <<15*84=1260>>1260\n#### 1,260") == 1
    assert reward("#### 8", "#### -8") == 0
    assert reward("#### 0.1", "#### 0.10") == 1


def test_a_solution_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="answer: expected a solution that ends in '#### NUMBER', got 'none'"):
        reward("#### 1", "none")


def test_the_bundled_problems_are_answered_by_their_solutions() -> None:
    problems = load_problems(str(PROBLEMS))
    assert len(problems) == 24
    assert all(reward(problem["answer"], problem["answer"]) == 1 for problem in problems)
    numbers = {final_number(problem["answer"]) for problem in problems}
    assert {Decimal(-8), Decimal("6.75"), Decimal(1260)} <= numbers


def test_a_data_set_without_datasets_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="openai/gsm8k is no file, and a data set needs: pip install datasets"):
        load_problems("openai/gsm8k")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"question": "?", "solution": "#### 1"}\n')
    with pytest.raises(ValueError, match="expected problems with question and answer, got one with question, solution"):
        load_problems(str(tmp_path / "other.jsonl"))


@pytest.mark.parametrize("file", ["gsm8k_gspo.yaml", "tiny.yaml"])
def test_the_configurations_are_those_of_the_example(file: str) -> None:
    configuration = Configuration.read(FOLDER / file, ["steps=3", "clip_high=0.5"])
    assert (configuration.steps, configuration.clip_high) == (3, 0.5)
    assert (configuration.group_size, configuration.behavior_cap) == (4, 5.0)
    assert configuration.objective.surrogate.low == 3e-4


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"eps_clip: expected one of .*clip_high, clip_low"):
        Configuration.read(FOLDER / "tiny.yaml", ["eps_clip=0.4"])
    for change, told in (
        ("steps", "key=value"),
        ("steps=x", "a whole number of at least 1"),
        ("group_size=1", "at least 2"),
    ):
        with pytest.raises(ValueError, match=told):
            Configuration.read(FOLDER / "tiny.yaml", [change])
    assert Configuration.read(FOLDER / "tiny.yaml", ["learning_rate=1e-6"]).learning_rate == 1e-6


def tiny(**changes: object) -> Configuration:
    """A run of a second."""
    shape = {"steps": 2, "groups": 4, "draws": 2, "max_new_tokens": 12, "micro_batch": 4, "learning_rate": 1e-2}
    where = {"model": TINY, "problems": str(PROBLEMS), "dtype": "float32", "device": "cpu"}
    return Configuration(**(where | shape | changes))


@pytest.fixture
def even_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random model gets about half of the time."""
    monkeypatch.setattr(gsm8k_gspo, "reward", lambda response, _: float(len(response) % 2 == 0))


@pytest.mark.usefixtures("even_answers")
def test_a_tiny_model_takes_steps_on_informative_groups() -> None:
    rows = list(Trainer(tiny(mini_batches=2, warm_up=1)).train())
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["responses"] % 4 == 0
        assert 0 < row["responses"] <= 16
        assert row["ratio_min"] < 1 < row["ratio_max"]
        assert row["clip_fraction"] > 0
        assert row["behavior_weight"] == pytest.approx(1, abs=1e-3)


@pytest.mark.usefixtures("even_answers")
def test_the_sampler_s_log_probabilities_are_those_of_the_training_pass() -> None:
    trainer = Trainer(tiny(temperature=0.7))
    rollout = trainer.generate(trainer.problems[:4])
    logp = trainer.logps(rollout).detach()
    assert rollout.mask.any(dim=1).all()
    torch.testing.assert_close(rollout.behavior_logp[rollout.mask], logp[rollout.mask], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("even_answers")
def test_micro_batches_add_up_to_the_step() -> None:
    weights = []
    for size in (2, 16):
        trainer = Trainer(tiny(mini_batches=1, micro_batch=size))
        trainer.step()
        weights.append(trainer.model.get_output_embeddings().weight.detach())
    torch.testing.assert_close(*weights, atol=1e-5, rtol=0)


def test_no_informative_group_is_no_step() -> None:
    trainer = Trainer(tiny())
    before = trainer.model.get_output_embeddings().weight.detach().clone()
    said = trainer.step()
    assert (said["reward"], said["responses"], said["groups_drawn"]) == (0, 0, 8)
    assert torch.equal(trainer.model.get_output_embeddings().weight, before)


def test_a_saved_model_is_loaded_by_its_folder(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=0, save=str(tmp_path)))
    list(trainer.train())
    again = Trainer(tiny(model=str(tmp_path)))
    prompt = trainer.prompt(trainer.problems[0]["question"])
    assert again.tokenizer(prompt)["input_ids"] == trainer.tokenizer(prompt)["input_ids"]
    assert torch.equal(again.model.get_output_embeddings().weight, trainer.model.get_output_embeddings().weight)
