"""TextPolicy: its functions as a dialect, how a program names them, its real losses on MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.textpolicy.dialect import DIALECT

from .real import check_read_again, row_factors, same

VERSION = "0.1.11"
CLIP = {"kind": "clip", "low": 3e-4, "high": 3e-4, "dual": None}
TOKEN_MEAN = {"mode": "token_mean", "count": "all", "constant": 1.0}


def _rules(settings: dict[str, Any], *severities: str) -> set[str]:
    return {one.rule for one in findings(DIALECT.read(settings, VERSION)) if one.severity in severities}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 8, same)


def test_its_gspo_is_the_papers_but_for_lengths_and_the_other_side_of_the_clip() -> None:
    settings = {**DIALECT.gspo(CLIP, VERSION), "on_policy": False}
    assert DIALECT.read(settings, VERSION).objective == {**PAPER, "surrogate": CLIP}
    assert _rules(settings, "error") == {"guessed-lengths"}
    assert _rules(settings, "warning") == {"clip-both-sides", "batch-baseline", "scale"}
    assert "guessed-lengths" not in _rules({**settings, "loss_fn": "gspo_policy_loss"}, "error")


def test_a_name_without_gspo_makes_responses_of_tokens() -> None:
    """Hunts the trainer's way of telling losses: by the name of the function."""
    reading = DIALECT.read({"loss_fn": "gspo.policy_loss_sequence", "clip_ratio": 3e-4}, VERSION)
    assert (reading.objective["ratio"], reading.objective["aggregation"]) == ("token", TOKEN_MEAN)
    assert reading.objective["surrogate"]["high"] == 0.2
    assert {"expanded-advantages", "ratio", "one-update"} <= _rules({"loss_fn": "policy_loss_sequence"}, "error")


def test_advantages_of_ones_own_are_not_judged() -> None:
    assert "batch-baseline" in _rules({}, "warning")
    assert not _rules({"advantage_fn": "mine"}, "warning") & {"batch-baseline", "scale"}


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="one clip range"):
        DIALECT.write(PAPER, VERSION)
    with pytest.raises(Inexpressible, match="variant 'hybrid'"):
        DIALECT.read({"loss_fn": "policy_loss_hybrid"}, VERSION)
    with pytest.raises(Inexpressible, match="none of TextPolicy's own"):
        DIALECT.read({"loss_fn": "my_policy_loss"}, VERSION)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("gspo.policy_loss_sequence", {"loss_fn": "policy_loss_sequence"}),
        ("partial(grpo.policy_loss, clip_ratio=0.1)", {"loss_fn": "policy_loss", "clip_ratio": 0.1}),
        (
            "gspo.create_gspo_policy_loss(variant='token', clip_ratio=3e-4)",
            {"loss_fn": "create_gspo_policy_loss", "variant": "token", "clip_ratio": 3e-4},
        ),
        ("chosen", {"loss_fn": "policy_loss_token"}),
    ],
)
def test_functions_that_a_program_hands_over_are_settings(loss: str, settings: dict[str, Any], tmp_path: Path) -> None:
    program = f"chosen = gspo.policy_loss_token\nTrainer(advantage_fn=grpo.compute_advantages, loss_fn={loss})\n"
    (tmp_path / "run.py").write_text(program)
    read = read_configuration([str(tmp_path / "run.py")])
    assert read.settings == {"advantage_fn": "compute_advantages", **settings}
    assert not read.computed


def test_it_is_told_by_its_name_alone(tmp_path: Path) -> None:
    """Hunts a file of another trainer that is taken for arguments of its functions."""
    assert recognised([], {"clip_ratio": 0.2, "clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4})[0] == "verl"
    (tmp_path / "run.py").write_text("from textpolicy.algorithms import gspo\n")
    assert recognised([str(tmp_path / "run.py")], {"clip_ratio": 3e-4})[0] == "textpolicy"


def test_a_function_that_cannot_be_told_is_computed_and_a_name_that_is_itself_ends(tmp_path: Path) -> None:
    program = "for f in losses:\n    Trainer(advantage_fn=g, loss_fn=f, on_policy=False)\ng = g\n"
    (tmp_path / "run.py").write_text(program)
    read = read_configuration([str(tmp_path / "run.py")])
    assert read.settings == {"on_policy": False}
    assert read.unread == {"loss_fn", "advantage_fn"}


def test_row_factors_of_the_real_loss_inside_the_range() -> None:
    (found,) = row_factors("textpolicy", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, np.ones(6), rtol=1e-5)


def test_in_its_trainer_tokens_of_one_response_have_different_gradients() -> None:
    """Hunts lengths that are guessed."""
    with pytest.raises(AssertionError, match="the tokens of a response differ"):
        row_factors("textpolicy:default", PAPER["aggregation"], dtype="float32")
