"""Answers known by hand, from the examples of the specification; layouts, exactness and refusals."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from mpmath import exp, mp, mpf, sqrt

from gspo_conformance.oracle import Output, evaluate, evaluate_step, truth
from gspo_conformance.oracle.differences import flattened
from gspo_conformance.oracle.exact import as_dtype, exact

CLIP = {"kind": "clip", "low": 0.125, "high": 0.25, "dual": 2.0}
TOKENS = {"logp": [[-0.5, -1.0, nan], [-1.0, -1.0, -1.0]], "old_logp": [[-1.0, -1.0, inf], [-1.0, -0.5, -1.0]]}
MASK = [[1, 1, 0], [1, 1, 1]]


def objective(ratio: str = "sequence", surrogate: Any = CLIP, **axes: Any) -> dict[str, Any]:
    """A point of the family, little written out."""
    return {"ratio": ratio, "surrogate": surrogate, **axes}


def answer(operation: str, parameters: dict[str, Any], inputs: dict[str, Any], output: str) -> Output:
    """One output of an operation."""
    return truth(operation, parameters, inputs).outputs[output]


def same(got: Any, wanted: Any) -> bool:
    """Equal to 45 digits, element by element."""
    with mp.workdps(50):
        pairs = list(zip(flattened(got), flattened(wanted), strict=True))
        return all(abs(a - b) <= mpf(10) ** -45 * (1 + abs(b)) for a, b in pairs)


def at_fifty(function: Any) -> Any:
    """What a formula gives at 50 digits."""
    with mp.workdps(50):
        return function()


def test_the_clipped_loss_of_two_responses() -> None:
    """s = (e^{1/4}, e^{-1/6}); A = (1, -1): both fall to a bound, 1 + 1/4 and 1 - 1/8; L = -(5/4 - 7/8)/2."""
    inputs = TOKENS | {"mask": MASK, "advantages": [1.0, -1.0]}
    found = truth("policy_loss", {"objective": objective()}, inputs)
    assert found.outputs["loss"].value == mpf(-3) / 16
    assert flattened(found.outputs["gradient"].value) == [0] * 6
    assert flattened(found.outputs["gradient"].scale) == [0] * 6
    shares = [found.outputs[f"metrics.clip_fraction_{cause}"].value for cause in ("high", "low", "dual")]
    assert same(shares, at_fifty(lambda: [mpf(2) / 5, mpf(3) / 5, 0]))


def test_the_open_side_keeps_value_and_gradient() -> None:
    """A = (-1, 1): neither is clipped; g_t = -(1/2) s A / T."""
    inputs = TOKENS | {"mask": MASK, "advantages": [-1.0, 1.0]}
    found = truth("policy_loss", {"objective": objective()}, inputs).outputs
    s, r = at_fifty(lambda: exp(mpf(1) / 4)), at_fifty(lambda: exp(-mpf(1) / 6))
    assert same(found["loss"].value, at_fifty(lambda: (s - r) / 2))
    assert same(found["gradient"].value, at_fifty(lambda: [s / 4, s / 4, 0, -r / 6, -r / 6, -r / 6]))
    assert found["gradient"].value[0][2] == found["gradient"].scale[0][2] == 0


def test_gspo_token_moves_each_token_by_its_own_advantage() -> None:
    advantages = [[1.0, -1.0, nan], [0.0, 2.0, 1.0]]
    wanted = objective("gspo_token", {"kind": "unclipped"})
    found = truth("policy_loss", {"objective": wanted}, TOKENS | {"mask": MASK, "advantages": advantages}).outputs
    s, r = at_fifty(lambda: exp(mpf(1) / 4)), at_fifty(lambda: exp(-mpf(1) / 6))
    assert same(found["gradient"].value, at_fifty(lambda: [-s / 4, s / 4, 0, 0, -r / 3, -r / 6]))
    assert found["gradient"].scale[1][0] == 0


def test_padded_ragged_and_packed_are_one_problem() -> None:
    advantages = {"advantages": [-1.0, 1.0]}
    packed = {name: rows[0][:2] + rows[1] + [nan] for name, rows in TOKENS.items()} | {"offsets": [0, 2, 5]}
    padded = evaluate(objective(), TOKENS | advantages | {"mask": MASK})
    flat = evaluate(objective(), packed | advantages)
    assert same(padded.loss.value, flat.loss.value)
    assert same(flat.gradient.value, [*padded.gradient.value[0][:2], *padded.gradient.value[1], 0])
    parts = [{name: [rows[i]] for name, rows in TOKENS.items()} | {"mask": [MASK[i]], "advantages": [2 * i - 1]} for i in (0, 1)]  # fmt: skip
    whole, gradients = evaluate_step(objective(), parts)
    assert same(whole.loss.value, padded.loss.value)
    assert same([gradient.value[0] for gradient in gradients], padded.gradient.value)


def test_a_step_has_the_loss_of_the_union() -> None:
    parts = [
        {"logp": [[-1.0, -1.0]], "old_logp": [[-1.0, -1.0]], "mask": [[1, 1]], "advantages": [1.0]},
        {"logp": [-1.0] * 3, "old_logp": [-1.0] * 3, "offsets": [0, 1, 3], "advantages": [-1.0, 0.5]},
    ]
    found = truth("step", {"objective": objective(), "normalizer": 3}, {"parts": parts}).outputs
    assert same(found["loss"].value, at_fifty(lambda: -mpf(1) / 6))
    assert same(found["gradient.0"].value, at_fifty(lambda: [-mpf(1) / 6, -mpf(1) / 6]))
    assert same(found["gradient.1"].value, at_fifty(lambda: [mpf(1) / 3, -mpf(1) / 12, -mpf(1) / 12]))


def test_a_pipeline_passes_what_its_advantages_err_by() -> None:
    tokens = {"logp": [[-1.0], [-1.0], [-1.0]], "old_logp": [[-1.0]] * 3, "mask": [[1]] * 3}
    inputs = tokens | {"rewards": [0.0, 1.0, 1.0], "groups": [7, 7, 7]}
    found = truth("pipeline", {"objective": objective(), "advantages": {"ddof": 0, "eps": 0.0}}, inputs).outputs
    assert same(found["advantages"].value, at_fifty(lambda: [-sqrt(2), 1 / sqrt(2), 1 / sqrt(2)]))
    assert same(found["gradient"].value, at_fifty(lambda: [sqrt(2) / 3, -1 / sqrt(18), -1 / sqrt(18)]))
    given = tokens | {"advantages": found["advantages"].value}
    alone = answer("policy_loss", {"objective": objective()}, given, "gradient")
    assert all(a > b for a, b in zip(flattened(found["gradient"].scale), flattened(alone.scale)))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("token", [[0.5, 0.0, None], [0.0, -0.5, 0.0]]),
        ("gspo_token", [[0.25, 0.25, None], [Fraction(-1, 6)] * 3]),
        ("sequence", [0.25, Fraction(-1, 6)]),
        ("product", [0.5, -0.5]),
    ],
)
def test_ratios(kind: str, wanted: list[Any]) -> None:
    found = answer("ratio", {"kind": kind}, TOKENS | {"mask": MASK}, "ratio")
    logs = [0 if log is None else Fraction(log) for log in flattened(wanted)]
    assert same(found.value, at_fifty(lambda: [exp(mpf(log.numerator) / log.denominator) for log in map(Fraction, logs)]))  # fmt: skip
    assert not any(one for one, log in zip(flattened(found.scale), flattened(wanted)) if log in (None, 0.0))


def test_clipped_surrogate_of_the_specification() -> None:
    ratio, a = [0.5, 1.5, 0.5, 1.5, 4.0, 3.0], [1.0, 1.0, -1.0, -1.0, -1.0, 0.0]
    clip = {"low": 0.25, "high": 0.25, "dual": 3.0}
    found = answer("clipped_surrogate", {"clip": clip}, {"ratio": ratio, "advantages": a}, "value")
    assert found.value == [0.5, 1.25, -0.75, -1.5, -3.0, 0.0]
    assert found.scale[-1] == 0


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ({"mode": "sequence_mean_token_mean"}, Fraction(0)),
        ({"mode": "sequence_mean_token_mean", "count": "non_empty"}, Fraction(0)),
        ({"mode": "token_mean"}, Fraction(-1, 2)),
        ({"mode": "sequence_mean_token_sum"}, Fraction(-2, 3)),
        ({"mode": "sequence_mean_token_sum", "count": "non_empty", "constant": 4.0}, Fraction(-1, 4)),
        ({"mode": "token_sum", "constant": 8.0}, Fraction(-1, 4)),
        ({"mode": "group_token_mean"}, Fraction(0)),
        ({"mode": "group_token_mean", "count": "non_empty"}, Fraction(0)),
    ],
)
def test_aggregations_of_the_specification(mode: dict[str, Any], wanted: Fraction) -> None:
    inputs = {"values": [[1.0, 9, 9], [-1, -1, -1], [7, 7, 7]], "mask": [[1, 0, 0], [1, 1, 1], [0, 0, 0]]}
    found = answer("aggregate", {"mode": mode}, inputs | {"groups": [7, 2, 7]}, "value")
    assert same(found.value, at_fifty(lambda: mpf(wanted.numerator) / wanted.denominator))
    assert found.scale > 0
    given = {"mode": mode | {"count": "given"}, "normalizer": 2}
    total = answer("aggregate", given | {"normalizer": 1}, inputs | {"groups": [7, 2, 7]}, "value").value
    assert same(2 * answer("aggregate", given, inputs | {"groups": [7, 2, 7]}, "value").value, total)


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        ("k1", lambda: [2, 0, -2]),
        ("k2", lambda: [2, 0, 2]),
        ("k3", lambda: [exp(-2) + 1, 0, exp(2) - 3]),
        ("k3_plus", lambda: [exp(-2) + 1, 0, exp(2) - 3]),
        ("abs", lambda: [2, 0, 2]),
    ],
)
def test_penalties_of_the_specification(estimator: str, wanted: Any) -> None:
    tokens = {"logp": [-1.0, -2.0, -3.0], "ref_logp": [-3.0, -2.0, -1.0]}
    assert same(answer("kl_penalty", {"estimator": estimator}, tokens, "value").value, at_fifty(wanted))
    rewards = {"rewards": [4.0], "offsets": [0, 3]} | tokens
    found = answer("token_kl_rewards", {"estimator": estimator, "coefficient": 0.5}, rewards, "rewards")
    assert same(found.value, at_fifty(lambda: [-k / mpf(2) + r for k, r in zip(wanted(), (0, 0, 4))]))


def group(rewards: list[float], groups: list[int], **parameters: Any) -> Output:
    """Group advantages with eps 0 unless told."""
    valid = {"valid": parameters.pop("valid")} if "valid" in parameters else {}
    inputs = {"rewards": rewards, "groups": groups} | valid
    return answer("group_advantages", {"eps": 0} | parameters, inputs, "advantages")


def test_group_advantages_by_hand() -> None:
    assert group([1.0, 0.0, 0.5], [3, 3, 3]).value == [1, -1, 0]
    assert group([1.0, 0.0, 0.5], [3, 3, 3], eps=0.5).value == [0.5, -0.5, 0]
    assert group([1.0, 0.0, 0.5], [3, 3, 3], eps=0.75, eps_placement="variance").value == [0.5, -0.5, 0]
    assert group([1.0, 5.0, 0.0], [3, 1, 3], ddof=0).value == [1, 0, -1]
    assert group([1.0, nan, 0.0], [3, 3, 3], ddof=0, valid=[1, 0, 1]).value == [1, 0, -1]
    assert group([1.0, 0.0, 0.5], [3, 3, 3], scale="none", center="leave_one_out").value == [0.75, -0.75, 0]
    batch = group([2.0, 0.0, 4.0, 6.0], [0, 0, 1, 1], scale="batch_std", ddof=0)
    assert same(batch.value, at_fifty(lambda: [sign / sqrt(5) for sign in (1, -1, -1, 1)]))
    third = group([4.0, 0.0, 2.0], [0, 0, 0], center="leave_one_out", scale="leave_one_out_std", ddof=0)
    assert third.value == [3, -3, 0]


def test_a_standard_deviation_of_zero_or_undefined() -> None:
    """GSPO-ADV-1: undefined does not divide, 0 leaves eps, and eps 0 leaves nothing."""
    assert group([4.0, 8.0], [0, 0], ddof=2).value == [-2, 2]
    others = {"center": "leave_one_out", "scale": "leave_one_out_std"}
    assert group([1.0, 0.0, 0.0], [0, 0, 0], eps=0.5, **others).value[0] == 2
    assert group([1.0, 0.0, 0.0], [0, 0, 0], **others).value[0] == 1
    assert group([2.0, 2.0], [0, 0], center="none", eps=0.5).value == [4, 4]


@pytest.mark.parametrize("center", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "batch_std", "leave_one_out_std", "none"])
def test_equal_rewards_and_singletons_are_owed_exactly(center: str, scale: str) -> None:
    found = group([0.1] * 7 + [3.0, 0.0, 1.0], [0] * 7 + [1, 2, 2], center=center, scale=scale, eps=1e-6)
    assert found.value[:8] == found.scale[:8] == [0] * 8
    assert all(found.value[8:])
    assert all(found.scale[8:])


def test_returns_and_generalised_advantages_of_the_specification() -> None:
    tokens = {"rewards": [[1.0, 100.0, 0.0, 2.0]], "mask": [[1, 0, 1, 1]]}
    assert answer("reinforce_returns", {"gamma": 0.5}, tokens, "returns").value == [[1.5, 0, 1, 2]]
    values = tokens | {"values": [[0.5, nan, 1.0, 1.5]]}
    found = truth("gae_advantages", {"gamma": 0.5, "lam": 0.5}, values).outputs
    assert found["advantages"].value == [[0.96875, 0, -0.125, 0.5]]
    assert found["returns"].value == [[1.46875, 0, 0.875, 2.0]]
    assert found["returns"].scale[0][1] == 0
    ended = truth("gae_advantages", {"gamma": 0.5, "lam": 0.5}, values | {"bootstrap": [4.0]}).outputs
    assert ended["advantages"].value[0][3] == 2.5


def test_a_discount_that_float32_does_not_hold_widens_the_scale() -> None:
    """Each of l factors is rounded: r gamma^l has the scale (1 + l) r gamma^l."""
    tokens = {"rewards": [[0.0] * 9 + [1.0]], "mask": [[1] * 10]}
    for gamma, factor in ((0.5, 1), (0.9, 10)):
        found = answer("reinforce_returns", {"gamma": gamma}, tokens, "returns")
        assert same(found.scale[0][0], at_fifty(lambda g=gamma, f=factor: f * mpf(g) ** 9))


def test_whitening() -> None:
    found = answer("whiten", {"eps": 0, "ddof": 0}, {"values": [[1.0, 3.0, nan]], "mask": [[1, 1, 0]]}, "values")
    assert found.value == [[-1, 1, 0]]
    shifted = answer("whiten", {"eps": 0, "ddof": 0, "center": False}, {"values": [1.0, 3.0]}, "values")
    assert shifted.value == [1, 3]
    for center, value in ((True, 0), (False, 5)):
        equal = answer("whiten", {"center": center}, {"values": [[5.0, 5.0], [5.0, 5.0]]}, "values")
        assert equal.value == [[value] * 2] * 2
        assert equal.scale == [[0, 0], [0, 0]]


def test_reinforce_pp_takes_the_mean_of_totals_off_the_last_token() -> None:
    """Totals 1, 3 and 0 (empty): baseline 4/3; last tokens 1 - 4/3 and 2 - 4/3, returns-to-go (-1/3, -1/3) and (5/3, 2/3)."""
    tokens = {"token_rewards": [0.0, 1.0, 1.0, 2.0, nan], "offsets": [0, 2, 4, 4], "groups": [9, 9, 9]}
    found = answer("reinforce_pp_advantages", {"eps": 0, "ddof": 0}, tokens, "advantages")
    returns = answer("whiten", {"eps": 0, "ddof": 0}, {"values": [-1.0, -1.0, 5.0, 2.0]}, "values")
    assert same(found.value, [*returns.value, 0])
    plain = answer("reinforce_pp_advantages", {"eps": 0, "ddof": 0}, {"token_rewards": [[0.0, 1.0], [2.0, 1.0]], "mask": [[1, 1]] * 2}, "advantages")  # fmt: skip
    wanted = answer("whiten", {"eps": 0, "ddof": 0}, {"values": [1.0, 1.0, 3.0, 1.0]}, "values")
    assert same(plain.value, wanted.value)


def test_clips_are_exact_inside_and_at_bounds_that_float32_holds() -> None:
    found = answer("clip_rewards", {"low": 0, "high": 0.1}, {"rewards": [-inf, 0.05, 3.0]}, "rewards")
    assert found.value == [0, 0.05, 0.1]
    assert found.scale == [0, 0, 0.1]
    clipped = answer("clip_advantages", {"bound": 1.5}, {"advantages": [[-3.0, nan]], "mask": [[1, 0]]}, "advantages")
    assert clipped == Output([[-1.5, 0]], [[0, 0]])


@pytest.mark.parametrize(
    ("shift", "scale", "wanted"), [(1, 0, [-2.0, 2.0]), (0, 1, [0.0, 0.8]), (1, 1, [-0.4, 0.4]), (0, 0, [0.0, 4.0])]
)
def test_normalised_rewards(shift: int, scale: int, wanted: list[float]) -> None:
    """Over 0 and 4, std 2 with ddof 0, eps 3; the same by group, and as the last of three running batches of mean 2 and std 2."""
    switches = {"shift": bool(shift), "scale": bool(scale), "ddof": 0, "eps": 3}
    rewards = {"rewards": [0.0, 4.0]}
    running = rewards | {"history": [0.0, 4.0, 4.0, 0.0], "history_sizes": [1, 3]}
    for method, inputs in (("batch", rewards), ("group", rewards | {"groups": [5, 5]}), ("running", running)):
        found = answer("normalize_rewards", {"method": method} | switches, inputs, "rewards")
        assert same(found.value, at_fifty(lambda: [mpf(round(5 * v)) / 5 for v in wanted]))
        assert any(found.scale) == bool(shift or scale)


def test_overlong_and_informative() -> None:
    lengths = {"lengths": [10, 80, 90, 100, 101]}
    found = answer("soft_overlong_penalty", {"max_length": 100, "cache": 20}, lengths, "values")
    assert found == Output([0, 0, -0.5, -1, -1], [0, 0, 0.5, 1, 0])
    rewards = {"rewards": [1.0, 1.0, 0.0, 1.0, 0.5, 0.1, 0.1, nan], "groups": [4, 4, 9, 9, 2, 7, 7, 9]}
    valid = {"valid": [1] * 7 + [0]}
    kept = truth("informative_groups", {}, rewards | valid)
    assert kept.outputs["keep"].value == [False, False, True, True, False, False, False, False]
    assert kept.kink_margin == inf
    bounded = truth("informative_groups", {"high": 0.5}, rewards | valid)
    assert not any(bounded.outputs["keep"].value)
    assert bounded.kink_margin == 0


def test_inputs_come_as_arrays_lists_and_hexadecimal_strings() -> None:
    forms = ([1.0, 0.5, 0.0], np.array([1.0, 0.5, 0.0], dtype=np.float32), ["0x1p0", "0x1p-1", "0x0p0"])
    found = [group(form, np.array([1, 1, 1])).value for form in forms]
    assert found == [[1, 0, -1]] * 3


def test_numbers_are_rounded_to_a_format_as_hardware_does() -> None:
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(size=300), rng.normal(size=300) * 1e-41, [65519.9, 65520.0, 3.4e38, 3.5e38]])
    with np.errstate(over="ignore"):
        for dtype in ("float16", "float32"):
            assert [as_dtype(exact(float(x)), dtype) for x in samples] == samples.astype(dtype).astype(float).tolist()
    assert as_dtype(mpf(1) + mpf(2) ** -8, "bfloat16") == 1.0
    assert as_dtype(mpf(1) + 3 * mpf(2) ** -8, "bfloat16") == 1 + 2.0**-6


@pytest.mark.parametrize(
    ("operation", "parameters", "inputs", "message"),
    [
        ("policy_los", {}, {}, "operation: expected one of policy_loss,"),
        ("whiten", {"centre": True}, {"values": [1.0]}, "whiten: unknown: centre; expected values, center"),
        ("whiten", {}, {}, "whiten: missing: values"),
        ("whiten", {"values": [1.0]}, {"values": [1.0]}, "whiten: given twice: values"),
        ("whiten", {}, {"values": [1.0, nan]}, "a counted input is not finite"),
        ("ratio", {"kind": "mean"}, TOKENS | {"mask": MASK}, "kind: expected one of token, sequence"),
        ("ratio", {"kind": "token"}, TOKENS, "a counted input is not finite: nan"),
        ("kl_penalty", {"estimator": "k4"}, {"logp": [0.0], "ref_logp": [0.0]}, "estimator: expected one of k1"),
        ("kl_penalty", {}, {"logp": [0.0, 1.0], "ref_logp": [0.0]}, "expected arrays of one shape"),
        ("group_advantages", {"scale": "sd"}, {"rewards": [1.0], "groups": [1]}, "scale: expected one of std"),
        ("group_advantages", {}, {"rewards": [1.0], "groups": [1, 2]}, "groups: expected 1 values, one for each"),
        ("group_advantages", {}, {"rewards": [1.0], "groups": [1], "valid": []}, "valid: expected 1 values"),
        ("gae_advantages", {"gamma": 1.5}, {"rewards": [[1.0]], "values": [[1.0]]}, "gamma: expected a number in"),
        ("clip_rewards", {"low": 1, "high": 0}, {"rewards": [1.0]}, "high: expected at least low = 1, got 0"),
        ("clip_advantages", {"bound": 0}, {"advantages": [1.0]}, "bound: expected a positive number, got 0"),
        ("normalize_rewards", {"method": "group"}, {"rewards": [1.0]}, "groups: expected with method 'group'"),
        ("normalize_rewards", {}, {"rewards": [1.0], "history": [1.0]}, "history: expected with method 'running'"),
        ("normalize_rewards", {"method": "running"}, {"rewards": [1.0], "history": [1.0]}, "history_sizes: expected a"),
        ("soft_overlong_penalty", {"max_length": 5, "cache": 6}, {"lengths": [1]}, "cache: expected 0 < cache"),
        ("aggregate", {"mode": {"mode": "mean"}}, {"values": [[1.0]]}, "unknown aggregation mode 'mean'"),
        ("aggregate", {"mode": {"count": "given"}}, {"values": [[1.0]]}, "count 'given' needs a normalizer"),
        ("aggregate", {"mode": {}}, {"values": [1.0], "offsets": [0, 2]}, "offsets must rise from 0 to at most 1"),
        ("aggregate", {"mode": {}}, {"values": [[1.0]], "mask": [[1, 1]]}, "the mask does not have the shape"),
        ("policy_loss", {"objective": objective()}, TOKENS | {"mask": MASK, "advantages": [[1.0] * 3] * 2}, "this objective takes one advantage per response"),
        ("policy_loss", {"objective": objective(penalty={"coefficient": 1})}, TOKENS | {"mask": MASK, "advantages": [1, 1]}, "a penalty needs ref_logp"),
        ("policy_loss", {"objective": objective("sequence", {"kind": "gmpo"})}, TOKENS | {"mask": MASK, "advantages": [1, 1]}, "no objective has ratio 'sequence' with surrogate 'gmpo'"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_refused(operation: str, parameters: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace("'", ".")):
        truth(operation, parameters, inputs)
