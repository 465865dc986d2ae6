"""Bad input gets one clear error that names the argument, what was expected and what came."""

from __future__ import annotations

import warnings
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import gspo_core as gspo

GOOD: dict[str, Any] = {
    "logp": np.full((2, 3), -1.0),
    "old_logp": np.full((2, 3), -1.1),
    "advantages": np.asarray([1.0, -1.0]),
    "sequences": np.ones((2, 3), bool),
}


def _nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flat[0] = np.nan
    return values


BAD = [
    ({"old_logp": np.zeros((2, 4))}, ValueError, r"old_logp: expected shape \(2, 3\) .*got \(2, 4\)"),
    ({"old_logp": np.zeros((2, 1))}, ValueError, r"old_logp: expected shape"),
    ({"logp": np.zeros(3)}, ValueError, r"logp: expected 2 dimensions"),
    ({"logp": np.zeros((2, 3), int)}, TypeError, r"logp: expected a real floating-point dtype, got int64"),
    ({"logp": [[0.0]]}, TypeError, r"logp: expected an array, got list"),
    ({"logp": _nan(GOOD["logp"])}, ValueError, r"logp: expected finite numbers at counted positions.*1 NaN.*\(0, 0\)"),
    ({"old_logp": GOOD["old_logp"] - np.inf}, ValueError, r"old_logp: expected finite numbers"),
    ({"advantages": np.ones(3)}, ValueError, r"advantages: expected shape \(2,\)"),
    ({"advantages": np.ones((2, 1))}, ValueError, r"advantages: expected shape \(2,\)"),
    ({"advantages": np.ones((2, 3))}, ValueError, r"advantages: .*one value per response"),
    ({"advantages": np.asarray([1, -1])}, TypeError, r"advantages: expected a real floating"),
    ({"advantages": _nan(GOOD["advantages"])}, ValueError, r"advantages: expected finite"),
    ({"sequences": np.full((2, 3), 0.5)}, ValueError, r"mask: expected only 0 and 1, got 6 other values"),
    ({"sequences": np.ones((2, 4))}, ValueError, r"mask: expected shape \(2, 3\) like logp, got \(2, 4\)"),
    ({"sequences": np.ones(3)}, ValueError, r"mask: expected shape \[B, T\]"),
    ({"sequences": np.ones((0, 3))}, ValueError, r"mask: .*at least one sequence"),
    ({"sequences": None}, TypeError, r"sequences: expected an array, got NoneType"),
    ({"groups": np.zeros(2)}, TypeError, r"groups: expected an integer dtype, got float64"),
    ({"groups": np.zeros(3, int)}, ValueError, r"groups: expected shape \(2,\)"),
    ({"normalizer": 0}, ValueError, r"normalizer: expected a number > 0, got 0"),
    ({"normalizer": np.ones(2)}, ValueError, r"normalizer: expected shape \(\)"),
    ({"objective": "gspo"}, TypeError, r"objective: expected an Objective, got str"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_policy_loss_names_the_bad_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"objective": gspo.Objective.gspo()} | GOOD | change
    for function in (gspo.policy_loss, gspo.policy_gradient):
        with pytest.raises(error, match=message):
            function(arguments["objective"], **{k: v for k, v in arguments.items() if k != "objective"})


@pytest.mark.parametrize(
    ("offsets", "options", "message"),
    [
        ([0, 3, 2, 6], {}, r"offsets: expected a non-decreasing sequence, got a step of -1"),
        ([1, 3, 6], {}, r"offsets: expected the first to be 0, got 1"),
        ([0, 3, 7], {}, r"offsets: expected the last to be at most 6"),
        ([0], {}, r"offsets: expected shape \[num_sequences \+ 1\]"),
        ([0, 2, 6], {"max_length": 3}, r"max_length: expected at least the longest segment, 4, got 3"),
        ([0, 2, 6], {"mask": np.ones(5)}, r"mask: expected shape \(6,\)"),
    ],
)
def test_packed_names_what_is_wrong(offsets: list[int], options: dict[str, Any], message: str) -> None:
    def call() -> None:
        sequences = gspo.Packed(np.asarray(offsets), **options)
        gspo.gspo_loss(np.zeros(6), np.zeros(6), np.ones(len(offsets) - 1), sequences)

    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64"])
def test_offsets_of_any_integer_mean_the_same(dtype: str) -> None:
    """Positions are more than a narrow dtype counts; unsigned steps never fall below 0."""
    arguments = (np.linspace(-1, 0, 70_000), np.zeros(70_000), np.asarray([1.0, -1.0]))
    expected = gspo.grpo_loss(*arguments, gspo.Packed(np.asarray([0, 100, 250])))
    found = gspo.grpo_loss(*arguments, gspo.Packed(np.asarray([0, 100, 250], dtype)))
    assert (found.loss, found.metrics["num_tokens"]) == (expected.loss, 250)
    with pytest.raises(ValueError, match=r"^offsets: expected a non-decreasing sequence, got a step of -2"):
        gspo.Packed(np.asarray([0, 5, 3], dtype))


def test_float_offsets_are_refused() -> None:
    with pytest.raises(TypeError, match="offsets: expected an integer dtype"):
        gspo.Packed(np.asarray([0.0, 2.0]))


def test_frameworks_do_not_mix() -> None:
    torch = pytest.importorskip("torch")

    with pytest.raises(TypeError, match=r"old_logp: expected an array of numpy, got one of torch$"):
        gspo.gspo_loss(GOOD["logp"], torch.zeros(2, 3), GOOD["advantages"], GOOD["sequences"])


@pytest.mark.parametrize("kind", ["sparse", "csr", "csc", "nested", "mkldnn", "masked", "wide", "small"])
def test_tensors_of_other_kinds_are_named(kind: str) -> None:
    torch = pytest.importorskip("torch")

    ones = torch.ones(2, 3)
    convert, told = {
        "sparse": (torch.Tensor.to_sparse, "expected a dense array, got a sparse_coo one"),
        "csr": (torch.Tensor.to_sparse_csr, "expected a dense array, got a sparse_csr one"),
        "csc": (torch.Tensor.to_sparse_csc, "expected a dense array, got a sparse_csc one"),
        "nested": (lambda values: torch.nested.nested_tensor(list(values)), "expected a dense array, got a nested one"),
        "mkldnn": (torch.Tensor.to_mkldnn, "expected a dense array, got a _mkldnn one"),
        "masked": (lambda values: torch.masked.masked_tensor(values, values > 0), "expected a plain array, got MaskedTensor"),
        "wide": (lambda values: values.to(torch.uint16), "expected a real floating-point dtype, got torch.uint16"),
        "small": (lambda values: values.to(torch.float8_e5m2), "expected a real floating-point dtype, got torch.float8_e5m2"),
    }[kind]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is in beta state
        logp = convert(ones)
    with pytest.raises(TypeError, match=f"^logp: {told}$"):
        gspo.gspo_loss(logp, ones, ones[:, 0], ones.bool())
    if kind == "wide":
        with pytest.raises(TypeError, match=r"^offsets: expected integers that PyTorch computes with"):
            gspo.Packed(torch.tensor([0, 6]).to(torch.uint32))


def test_what_an_objective_needs_is_asked_for() -> None:
    for objective, name in (
        (gspo.Objective.gspo().replace(penalty=gspo.Penalty()), "ref_logp"),
        (gspo.Objective.decoupled(), "behavior_logp"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected an array, since the objective has a"):
            gspo.policy_loss(objective, **GOOD)
    counted = gspo.Objective.gspo().replace(aggregation=gspo.Aggregation(count="given"))
    with pytest.raises(ValueError, match="normalizer: expected a number"):
        gspo.policy_loss(counted, **GOOD)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gspo.Clip(-0.1, 0.2), r"low: expected a number >= 0, got -0.1"),
        (lambda: gspo.Clip(0.1, float("nan")), r"high: expected a finite number"),
        (lambda: gspo.Clip(0.1, 0.2, 1.0), r"dual: expected a number > 1"),
        (lambda: gspo.Aggregation("mean"), r"mode: expected one of 'sequence_mean_token_mean'"),
        (lambda: gspo.Aggregation(constant=0.0), r"constant: expected a number > 0"),
        (lambda: gspo.Penalty("k4"), r"estimator: expected one of 'k1'"),
        (lambda: gspo.Correction(low=2.0, high=1.0), r"low: expected at most high"),
        (lambda: gspo.Objective("tokens", gspo.Clip(0.1, 0.1)), r"ratio: expected one of 'token'"),
        (lambda: gspo.Objective("sequence", gspo.Gmpo()), r"ratio: expected 'token' with the Gmpo"),
        (lambda: gspo.Objective.from_dict({"ratio": "token", "epsilon": 1}), r"objective field: expected one of"),
        (
            lambda: gspo.Objective.gspo().replace(clip=gspo.Clip(0.1, 0.1)),
            r"axis: expected one of 'ratio', .*got 'clip'",
        ),
    ],
)
def test_an_objective_cannot_be_built_wrong(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


MANY = np.asarray(["mean", "std"])
ONES = np.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gspo.gspo_loss(**GOOD, clip=0.2), TypeError, r"^clip: expected a Clip, got float"),
        (lambda: gspo.clipped_surrogate(ONES, ONES, 0.2), TypeError, r"^clip: expected a Clip, got float"),
        (lambda: gspo.clipped_surrogate(ONES, None, gspo.Clip(0.1, 0.1)), TypeError, r"^advantages: expected an array"),
        (lambda: gspo.kl_penalty(ONES, None), TypeError, r"^ref_logp: expected an array, got NoneType"),
        (lambda: gspo.token_ratio(GOOD["logp"], None, GOOD["sequences"]), TypeError, r"^old_logp: expected an array"),
        (lambda: gspo.gspo_loss(**GOOD | {"old_logp": None}), TypeError, r"^old_logp: expected an array, got NoneType"),
        (lambda: gspo.aggregate(GOOD["logp"], GOOD["sequences"], 2), TypeError, r"^mode: expected an Aggregation or"),
        (lambda: gspo.group_advantages(ONES, np.ones(2, int), scale=MANY), ValueError, r"^scale: expected one of"),
        (lambda: gspo.kl_penalty(ONES, ONES, np.asarray([])), ValueError, r"^estimator: expected one of"),
        (lambda: gspo.Penalty(aggregation="gspo"), ValueError, r"^aggregation: expected one of .*, got 'gspo'"),
        (lambda: gspo.Aggregation(MANY), ValueError, r"^mode: expected one of"),
        (lambda: gspo.clip_rewards(ONES.astype(np.longdouble), 0.0, 1.0), TypeError, r"^rewards: expected a real"),
        (lambda: gspo.sequence_ratio(GOOD["logp"], _nan(GOOD["logp"]), GOOD["sequences"]), ValueError,
         r"^old_logp: expected finite numbers at counted positions"),
        (lambda: gspo.aggregate(_nan(GOOD["logp"]), GOOD["sequences"]), ValueError, r"^values: expected finite numbers at counted"),
        (lambda: gspo.gspo_loss(**GOOD | {"logp": np.ma.masked_less(GOOD["logp"], 0)}), TypeError,
         r"^logp: expected a plain array, got MaskedArray"),
        (lambda: gspo.gspo_loss(**GOOD | {"sequences": np.ma.masked_equal(GOOD["sequences"], 0)}), TypeError,
         r"^sequences: expected a plain array, got MaskedArray"),
        (lambda: gspo.Objective.cispo(gspo.Clip(0.2, 0.2)), TypeError, r"^surrogate: expected a Cispo, got Clip"),
        (lambda: gspo.Objective.gspo((3e-4, 4e-4)), TypeError, r"^clip: expected a Clip, got tuple"),
        (lambda: gspo.Reinforce(0.2), TypeError, r"^gate: expected a Clip, got float"),
        (lambda: gspo.informative_groups(ONES, np.ones(2, int), low=0.9, high=0.1), ValueError, r"^high: expected a number >="),
        (lambda: gspo.RunningMoments(2, "0.5", 0.1).update(ONES), TypeError, r"^mean: expected a number, got str"),
        (lambda: gspo.RunningMoments(2, 0.5, "0.1").update(ONES), TypeError, r"^m2: expected a number, got str"),
        (lambda: gspo.gspo_loss(**GOOD | {"old_logp": GOOD["logp"].view(np.matrix)}), TypeError,
         r"^old_logp: expected a plain array, got matrix"),
        (lambda: gspo.whiten(ONES.astype(object)), TypeError, r"^values: expected a real floating-point dtype"),
        (lambda: gspo.informative_groups(ONES, None), TypeError, r"^groups: expected an array, got NoneType"),
        (lambda: gspo.token_kl_rewards(ONES, GOOD["logp"], None, GOOD["sequences"], coefficient=0.1), TypeError,
         r"^ref_logp: expected an array, got NoneType"),
        (lambda: gspo.soft_overlong_penalty(ONES.astype(object), 4, 2), TypeError, r"^lengths: expected a real"),
        (lambda: gspo.Padded(np.zeros((4, 0), "V4")), TypeError, r"^mask: expected booleans, or 0 and 1, got \|V4"),
        (lambda: gspo.Padded(np.zeros((1, 2), complex)), TypeError, r"^mask: expected booleans, or 0 and 1, got complex"),
        (lambda: gspo.Packed(np.asarray([0, 3]), max_length=2.5), TypeError, r"^max_length: expected an integer"),
        (lambda: gspo.Packed(np.asarray([0, 3]), max_length=-1), ValueError, r"^max_length: expected an integer >= 0"),
        (lambda: gspo.whiten(ONES, center=MANY), TypeError, r"^center: expected True or False, got ndarray"),
        (lambda: gspo.whiten(ONES, ddof=10**400), ValueError, r"^ddof: expected a finite number, got 1000"),
        (lambda: gspo.normalize_rewards(ONES, shift=0), TypeError, r"^shift: expected True or False, got int"),
        (lambda: gspo.Correction(negative_only=1), TypeError, r"^negative_only: expected True or False, got int"),
        (lambda: gspo.gspo_loss(**GOOD, normalizer=np.asarray(1j)), TypeError, r"^normalizer: expected a real"),
        (lambda: gspo.gspo_loss(**GOOD, normalizer=np.asarray(np.nan)), ValueError, r"^normalizer: expected finite"),
        (lambda: gspo.gspo_loss(**GOOD, normalizer=np.asarray(-1)), ValueError, r"^normalizer: expected a number >= 0"),
        (lambda: gspo.Objective.from_json("[" * 100_000), ValueError, r"^text: expected the JSON of an objective"),
        (lambda: gspo.Objective.from_json("{"), ValueError, r"^text: expected the JSON of an objective"),
        (lambda: gspo.Objective.from_dict({"ratio": "token", "surrogate": {"kind": "clip", "low": 1}}), ValueError,
         r"^surrogate field: expected 'high', which is missing"),
        (lambda: gspo.Objective.from_dict(gspo.Objective.gspo().to_dict() | {"correction": True}), TypeError,
         r"^correction: expected a list, got bool"),
    ],
)  # fmt: skip
def test_what_fuzzing_found_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_half_precision_ratio_of_no_dimensions_is_widened_like_any_other() -> None:
    half = np.asarray(0.5, np.float16)
    assert gspo.clipped_surrogate(half, half, gspo.Clip(0.1, 0.2)).dtype == np.float32


def test_a_scalar_of_numpy_is_a_number_and_widens_nothing() -> None:
    """A sweep over `np.linspace` is a sweep over numbers: float32 stays float32, in every framework."""
    low, high, three = np.float64(3e-4), np.float32(4e-4), np.int64(3)
    arguments = {name: values.astype(np.float32) for name, values in GOOD.items() if name != "sequences"}
    arguments["sequences"] = GOOD["sequences"]
    for kind in (np.asarray, strict.asarray):
        step = {name: kind(values) for name, values in arguments.items()}
        expected = gspo.gspo_loss(**step, normalizer=3).loss
        for normalizer in (np.float64(3), three):
            found = gspo.gspo_loss(**step, clip=gspo.Clip(low, high), normalizer=normalizer).loss
            assert found.dtype == expected.dtype
            assert float(found) == float(expected)
        rewards, ids = kind(np.asarray([1, 0, 1, 0], np.float32)), kind(np.asarray([0, 0, 1, 1]))
        assert gspo.group_advantages(rewards, ids, eps=np.float64(1e-6), ddof=np.int64(1)).dtype == rewards.dtype
    assert gspo.Objective.from_json(gspo.Objective.gspo(gspo.Clip(low, high, three)).to_json()).surrogate.dual == 3


def test_value_checks_can_be_turned_off() -> None:
    arguments = GOOD | {"logp": _nan(GOOD["logp"])}
    with gspo.value_checks(False):
        out = gspo.policy_loss(gspo.Objective.gspo(), **arguments)
        slopes = gspo.policy_gradient(gspo.Objective.gspo(), **arguments)
    assert np.isnan(out.loss)
    assert np.isfinite(slopes[1]).all()
    with pytest.raises(ValueError, match="logp"):
        gspo.policy_loss(gspo.Objective.gspo(), **arguments)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("logp", gspo.Objective.gspo().replace(log_ratio_cap=10.0)),
        ("logp", gspo.Objective.sapo()),
        ("old_logp", gspo.Objective.minirl().replace(correction=())),
        ("behavior_logp", gspo.Objective.decoupled()),
        ("behavior_logp", gspo.Objective.gspo().replace(correction=gspo.Correction("geometric", "reject", high=2.0))),
    ],
)
def test_nothing_holds_drops_or_rejects_a_nan_that_is_not_checked(name: str, objective: gspo.Objective) -> None:
    """As where nothing is read, in a trace or on a GPU (GSPO-NUM-6)."""
    arguments = GOOD | {"behavior_logp": np.full((2, 3), -1.2)}
    with gspo.value_checks(False):
        spoilt = gspo.policy_loss(objective, **(arguments | {name: _nan(arguments[name])}))
    assert np.isfinite(gspo.policy_loss(objective, **arguments).loss)
    assert np.isnan(spoilt.loss)
