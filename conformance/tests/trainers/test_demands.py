"""What a case demands of a release that was not pinned: its settings, or a skip that names the one it lacks."""

from __future__ import annotations

import pytest

from gspo_conformance.target import Skip
from gspo_conformance.trainers import demands

DEFAULTS = {"beta": 0.04, "delta": None}


def test_a_setting_that_a_release_has_not_is_left_out_where_it_changes_nothing() -> None:
    assert demands.had({"beta": 0.1, "delta": None}, ["beta"], DEFAULTS, "Acme 1.0") == {"beta": 0.1}


@pytest.mark.parametrize("settings", [{"delta": 3.0}, {"gamma": None}])
def test_a_setting_that_a_release_has_not_and_would_need_is_a_skip(settings: dict[str, float | None]) -> None:
    (name,) = settings
    with pytest.raises(Skip, match=f"Acme 1.0 has no setting {name}"):
        demands.had({"beta": 0.1, **settings}, ["beta"], DEFAULTS, "Acme 1.0")


def test_a_value_that_a_release_refuses_is_a_skip_and_another_error_stays() -> None:
    keys, settings = {"Unknown loss": "loss_type"}, {"loss_type": "sapo"}
    found = demands.refused(ValueError("Unknown loss: sapo"), keys, settings, "Acme 1.0")
    assert (type(found), str(found)) == (Skip, "Acme 1.0 has no loss_type sapo")
    other = ValueError("shapes do not match: 3 and 4")
    assert demands.refused(other, keys, settings, "Acme 1.0") is other
