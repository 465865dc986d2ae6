"""The diagnosis: what a target computes instead, in one sentence, and nothing where it does not know."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from gspo_conformance import check, load_vectors, loss_target
from gspo_conformance.diagnosis import diagnose
from gspo_conformance.diagnosis.census import account_of, examine, sample_pairs
from gspo_conformance.diagnosis.evidence import Evidence
from gspo_conformance.diagnosis.verdict import atlas_of, diagnose_evidence
from gspo_conformance.mutants import find, mutants
from gspo_conformance.mutants.atlas import Atlas
from gspo_conformance.mutants.dialects import DIALECTS
from gspo_conformance.target import Capabilities, Case, FunctionTarget
from gspo_conformance.targets.numpy import target as numpy_target

from .losses import formed, paper

CORE = numpy_target()
Answer = Callable[[Case], Mapping[str, Any]]


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return atlas_of(load_vectors())


def found(target: Any, *patterns: str, **options: Any) -> Mapping[str, Any]:
    with np.errstate(all="ignore"):
        diagnosis = check(target, *patterns, **options).diagnosis
    assert diagnosis is not None
    return diagnosis


def deviant(change: Callable[[str, Any, Case], Any], **capabilities: Any) -> FunctionTarget:
    """The core with every output put through a change."""

    def run(case: Case) -> dict[str, Any]:
        return {name: change(name, value, case) for name, value in CORE.run(case).items()}

    return FunctionTarget(
        "deviant", run, Capabilities.everything(operations={"policy_loss"}, metrics=(), **capabilities)
    )


def test_a_token_mean_written_in_torch_is_named() -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        moved = torch.where(mask, logp - old_logp, 0.0)
        ratio = torch.exp(moved.sum(1) / mask.sum(1).clamp(min=1))
        value = torch.minimum(ratio * advantages, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantages)
        return -(value[:, None] * mask).sum() / mask.sum().clamp(min=1)

    diagnosis = found(loss_target(loss), "aggregation/*", "surrogate/*", "ratio/*")
    assert diagnosis["mutants"] == ["aggregation.token-mean"]
    assert (
        "returns the loss of `aggregation.token-mean` (GSPO-AGG-1): the mean over all tokens of the batch;"
        in diagnosis["sentence"]
    )
    assert "each response is weighted by its length" in diagnosis["sentence"]
    low, high = diagnosis["gradient_factors"] or (1.0, 1.0)
    assert low < 0.5 < 1.5 < high


def test_token_sums_are_off_by_the_length() -> None:
    diagnosis = found(find("aggregation.token-sum"), "aggregation/long-and-short*", dtypes=("float32",))
    assert diagnosis["mutants"] == ["aggregation.token-sum"]
    assert diagnosis["sentence"].endswith("gradient 2x to 22x here")
    assert diagnosis["confidence"] == 1


def test_a_target_that_returns_the_loss_alone_is_named() -> None:
    mutant = find("clip.range-swapped")
    target = FunctionTarget("loss alone", mutant.run, Capabilities(objectives=({"ratio": "sequence"},)))
    diagnosis = found(target, "surrogate/*", "ratio/*", "aggregation/*")
    assert "clip.range-swapped" in (*diagnosis["mutants"], *diagnosis["equivalents"])
    assert diagnosis["gradient_factors"] is None


def test_a_right_target_has_no_diagnosis() -> None:
    assert diagnose(check(CORE, "aggregation/*"), load_vectors()) is None


def test_the_run_carries_it() -> None:
    run = check("mutant:loss.sign", "aggregation/lengths*")
    assert run.diagnosis is not None
    assert run.diagnosis["mutants"] == ["loss.sign"]
    assert run.diagnosis["clauses"] == ["GSPO-SURR-1"]
    assert run.diagnosis["explained"] == run.diagnosis["of"] > 0


UNKNOWN = {
    "a factor": (lambda name, value, case: value * 1.7, "loss 1.7x throughout"),
    "NaN": (lambda name, value, case: value * np.nan, "NaN or infinity"),
    "noise": (lambda name, value, case: value + 1e-3 * np.random.default_rng(3).normal(size=value.shape), ""),
    "float64 alone": (lambda name, value, case: value * 1.3 if case.dtype == "float64" else value, "only in float64"),
    "packed alone": (lambda name, value, case: value * 1.3 if case.layout == "packed" else value, "only with layout packed"),
    "a wrong shape": (lambda name, value, case: value.reshape(*value.shape, 1), "wrong shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_knows_is_described(name: str) -> None:
    change, words = UNKNOWN[name]
    patterns = ("packing/*", "aggregation/s*") if name == "packed alone" else ("aggregation/*", "surrogate/paper-*")
    diagnosis = found(deviant(change), *patterns)
    assert diagnosis["mutants"] == [], diagnosis["sentence"]
    assert diagnosis["sentence"].startswith("unknown deviation")
    assert any(words in text for text in diagnosis["observed"]) or not words, diagnosis["observed"]


def test_who_explains_some_answers_is_likened_not_named() -> None:
    """The sign is wrong in most answers, and something else is in the others."""
    wrong = deviant(lambda name, value, case: value * (2.5 if case.layout == "packed" else -1.0))
    diagnosis = found(wrong, "packing/*", "aggregation/*", "surrogate/paper-*")
    assert 0.5 < diagnosis["confidence"] < 0.9
    assert diagnosis["sentence"].startswith("resembles the loss of `loss.sign`"), diagnosis["sentence"]


def test_what_fails_the_run_comes_before_conventions() -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        count = mask.sum(1).clamp(min=1)
        ratio = torch.exp((logp * mask).sum(1) / count - (old_logp * mask).sum(1) / count)
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantages).mean()

    sentence = found(loss_target(loss), "numerics/unlikely-tokens-gspo", "ratio/*", "mask/nan-*")["sentence"]
    judged, _, convention = sentence.partition("; below MUST, ")
    assert judged.startswith("unknown deviation; only questions that hunt `sum-before-subtract`")
    assert convention.startswith("returns the loss of `mask.multiplied`")


def test_errors_alone_are_no_deviation_of_anybody() -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        if len(mask) > 1:
            raise RuntimeError("mask: one response at a time")
        return paper(logp, old_logp, advantages, mask).mean()

    diagnosis = found(loss_target(loss), "aggregation/*gspo", "numerics/refuses-nan-*")
    assert diagnosis["mutants"] == []
    assert diagnosis["sentence"].startswith("too few answers to tell; ")
    assert "end in an error, most often RuntimeError: mask: one response at a time" in diagnosis["sentence"]


def test_answers_that_are_no_numbers_are_no_evidence_of_conventions() -> None:
    diagnosis = found(
        loss_target(lambda *arrays: Decimal("0.5"), "numpy"), "aggregation/*gspo", "numerics/refuses-nan-*"
    )
    assert diagnosis["mutants"] == []
    assert diagnosis["sentence"].startswith("too few answers to tell; ")


def test_a_dtype_that_is_too_narrow_is_said() -> None:
    target = loss_target(lambda new, old, a, m: paper(new, old, a, m).mean().float(), dtypes=("float32", "float64"))
    sentence = found(target, "aggregation/*gspo")["sentence"]
    assert "outputs come in float32 where float64 is due; the gradient is right, the loss is not" in sentence


def test_of_wrong_metrics_it_is_said_that_they_alone_are_wrong() -> None:
    def run(case: Case) -> dict[str, Any]:
        return {name: value * 1.3 if name == "metrics.ratio_mean" else value for name, value in CORE.run(case).items()}

    target = FunctionTarget("deviant", run, Capabilities.everything(operations={"policy_loss"}))
    sentence = found(target, "metrics/ratio-*", "numerics/float64-gspo-token")["sentence"]
    assert "only metrics are wrong: ratio_mean" in sentence
    assert "the gradient is not" not in sentence


def test_an_error_that_does_not_name_the_input_is_no_answer() -> None:
    def run(case: Case) -> Any:
        if "refuses" in case.id:
            raise ValueError("no")
        return CORE.run(case)

    target = FunctionTarget("nameless", run, Capabilities.everything(operations={"policy_loss"}))
    sentence = found(target, "gradient/*")["sentence"]
    assert "10 errors do not name the input that is to be refused" in sentence
    assert "are accepted" not in sentence


def test_two_signs_that_are_wrong_are_found_apart() -> None:
    diagnosis = found(deviant(lambda name, value, case: -value if name == "loss" else value), "aggregation/*")
    assert set(diagnosis["mutants"]) == {"loss.sign", "gradient.negated"}
    assert "the loss has the wrong sign" in diagnosis["observed"]


def test_a_mistake_in_the_ratio_is_named_in_the_form_of_gspo_token_too() -> None:
    loss = loss_target(lambda new, old, a, m: formed(new, old, a, m, length=m.sum(1).max()))
    diagnosis = found(loss, "surrogate/paper-*", "gradient/*")
    assert diagnosis["mutants"] == ["ratio.longest-length"]
    assert diagnosis["clauses"] == ["GSPO-RATIO-4"]
    assert "as GSPO-token writes it" in diagnosis["sentence"]


def test_a_ratio_that_rounding_puts_on_a_wrong_bound_needs_no_second_culprit() -> None:
    loss = loss_target(lambda new, old, a, m: paper(new, old, a, m, clip=(3e-4, 3e-4)).mean())
    diagnosis = found(loss, "mask/no-padding", "surrogate/paper-*")
    assert diagnosis["mutants"] == ["clip.symmetric"]
    assert diagnosis["confidence"] == 1


def test_rounding_is_nobodys_mistake() -> None:
    """Hunts the mutant of another operation, or of another bound, that happens to be computed in float32."""

    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        return paper(logp, old_logp + logp.detach() - logp.detach(), advantages, mask).mean()

    diagnosis = found(loss_target(loss), "numerics/unlikely-tokens-gspo", "ratio/*", "gradient/*")
    assert diagnosis["mutants"] == []
    assert "1 answer off by rounding alone" in diagnosis["sentence"]
    assert "nearest" not in diagnosis["sentence"]


def test_a_pair_of_mistakes_is_told_from_itself_in_another_order() -> None:
    pair = "numerics.non-finite-accepted", "numerics.shapes-broadcast"
    diagnosis = found(find("+".join(pair)), "numerics/refuses-*")
    assert set(diagnosis["mutants"]) == set(pair)
    assert "+".join(reversed(diagnosis["mutants"])) not in diagnosis["equivalents"]


def alone_nothing(new: Any, old: Any, a: Any, m: Any) -> Any:
    return paper(new, old, a, m).mean() * (len(a) > 1)


def test_what_is_said_below_a_level_is_not_of_what_failed_it() -> None:
    """Hunts factors and names of MUST vectors beside the convention that non-finite inputs are accepted."""
    sentence = found(loss_target(alone_nothing), "aggregation/*gspo", "gradient/*", "numerics/refuses-*")["sentence"]
    judged, _, convention = sentence.partition("; below MUST, ")
    assert judged.startswith("unknown deviation; ")
    assert convention == (
        "returns the loss of `numerics.non-finite-accepted` (GSPO-NUM-6): NaN and infinity at counted tokens accepted; "
        "the loss is NaN instead of an error that names the argument"
    )


def test_a_flag_that_most_right_answers_share_is_no_hint() -> None:
    """Hunts "only questions that hunt token sums" of a loss that is 0 for a batch of one response."""
    texts = found(loss_target(alone_nothing), "gradient/*", "aggregation/*gspo")["observed"]
    assert not any("hunt" in text for text in texts), texts
    assert "the gradient is wrong only in batches of one response" in texts


def test_an_answer_that_is_right_in_the_other_dtype_tells_where_the_mistake_is() -> None:
    """A bound that was held in float32, which many right answers in float64 never meet."""
    clip = [float(np.float32(1 + width)) - 1 for width in (-3e-4, 4e-4)]
    narrow = loss_target(lambda *arrays: paper(*arrays, clip=(-clip[0], clip[1])).mean(), dtypes=("float32", "float64"))
    assert "only in float64" in found(narrow, "surrogate/paper-*", "gradient/*")["observed"]


def test_sums_that_round_over_long_responses_are_told_by_the_length() -> None:
    """Hunts a bare "unknown deviation" of a right formula that adds the surrogate of a response token by token."""

    def loss(new: Any, old: Any, a: Any, m: Any) -> Any:
        rows = m.nonzero(as_tuple=True)[0]
        each = paper(new, old, a, m)[rows].detach() + 0 * new.sum()
        return (torch.zeros(len(a)).index_add(0, rows, each) / m.sum(1).clamp(min=1)).mean()

    target = loss_target(loss, gradient=None)
    assert "only with responses of 32,768 tokens and more" in found(target, "numerics/*", "gradient/*")["observed"]


def test_a_bound_that_few_bits_hold_is_not_called_a_narrow_number() -> None:
    """Hunts "every wrong loss is a bfloat16 number" of ratios that a clamp of the log-probabilities makes 1."""
    clamped = loss_target(lambda new, old, a, m: paper(new.clamp(-100), old.clamp(-100), a, m).mean())
    told = found(clamped, "numerics/cancelling-overflow", "numerics/token-clamp*", "numerics/unlikely-tokens-gspo")
    assert not any("number" in text for text in told["observed"]), told["observed"]


def test_digits_that_are_cut_off_are_told_beside_a_mistake() -> None:
    """Hunts "accepts wrong offsets" as all that is said of a program whose failures are of numbers written to 15 digits."""

    def run(case: Case) -> dict[str, Any]:
        try:
            answer = CORE.run(case)
        except ValueError:
            answer = {"loss": 0.5, "gradient": np.full(case.inputs["logp"].shape, 0.25)}
        cut = np.vectorize(lambda x: float(f"{x:.15g}"))
        return {name: cut(np.asarray(answer[name], np.float64)) for name in case.outputs}

    able = Capabilities.everything(operations={"policy_loss"}, metrics=())
    diagnosis = found(FunctionTarget("perl", run, able), "packing/*")
    assert diagnosis["mutants"] == ["packing.offsets-trusted"]
    assert "off by rounding alone; every number of a wrong answer comes with at most 15" in diagnosis["sentence"]


def test_the_little_that_a_culprit_leaves_over_is_listed() -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        return (paper(logp, old_logp, advantages, mask).clamp(-15, 15) * mask.sum(1)).sum() / mask.sum().clamp(min=1)

    sentence = found(loss_target(loss), "surrogate/paper-*", "gradient/*")["sentence"]
    assert "`aggregation.token-mean` (GSPO-AGG-1): the loss of a response held at 3" in sentence
    assert "30 of 31 answers, not gradient/large-advantages" in sentence


def test_nobody_is_named_whom_other_answers_contradict(atlas: Atlas) -> None:
    """Three mistakes of a dialect explain the wrong answer; a sample of the right ones hardly speaks against them, all do."""

    def answer(question: int) -> Evidence:
        row = atlas.right(question)
        if atlas.bench.questions[question].vector.id != "aggregation/empty-group":
            return Evidence(question, row, right=True)
        return Evidence(question, replace(row, numbers=2 * row.numbers), right=False)

    diagnosis = diagnose_evidence([answer(question) for question in range(len(atlas.bench.questions))], atlas)
    assert diagnosis is not None
    assert diagnosis.names == (), diagnosis.sentence


def test_a_known_and_an_unknown_deviation_together_are_named_with_less_confidence() -> None:
    mutant = find("gradient.no-ratio")

    def run(case: Case) -> dict[str, Any]:
        answer = mutant.run(case)
        return {n: v * 1.1 for n, v in answer.items()} if "mixed" in case.id else answer

    diagnosis = found(replace(deviant(lambda n, v, c: v), function=run), "surrogate/*", "gradient/*")
    assert diagnosis["mutants"] == ["gradient.no-ratio"]
    assert 0.5 < diagnosis["confidence"] < 1
    assert "explains" in diagnosis["sentence"]


def test_of_several_functions_each_with_a_mistake_of_its_own_it_is_said_which() -> None:
    """A clip that is wrong for GSPO alone, advantages of the whole batch, token ratios wrong in a way that nobody knows."""
    clip, batch = find("clip.before-min"), find("advantage.batch-statistics")

    def run(case: Case) -> Mapping[str, Any]:
        if case.operation == "group_advantages":
            return batch.run(case)
        if case.objective and case.objective["ratio"] == "sequence":
            return clip.run(case)
        return {name: 1.7 * value for name, value in CORE.run(case).items()}

    capabilities = Capabilities.everything(operations={"policy_loss", "group_advantages"}, metrics=())
    diagnosis = found(FunctionTarget("three", run, capabilities), "surrogate/*", "gradient/*", "advantage/*")
    assert diagnosis["mutants"] == [], diagnosis["sentence"]
    assert "; by function, " in diagnosis["sentence"]
    assert "losses of sequence ratios as `clip.before-min` (GSPO-SURR-1)" in diagnosis["sentence"]
    assert "group_advantages as `advantage.batch-statistics` (GSPO-ADV-1)" in diagnosis["sentence"]
    assert "token ratios as" not in diagnosis["sentence"]


def test_a_dialect_is_named() -> None:
    dialect = next(one for one in DIALECTS if one.trainer == "verl 0.9.1")
    diagnosis = found(find("+".join(dialect.names)), "aggregation/*", "mask/*", "ratio/*", "numerics/*")
    assert set(diagnosis["mutants"]) == set(dialect.names)
    assert dialect.name in diagnosis["dialects"]
    assert f"as in {dialect.name}" in diagnosis["sentence"]


def test_every_dialect_is_made_of_mutants_and_differs_from_the_others() -> None:
    known = {mutant.name for mutant in mutants()}
    assert all(set(dialect.names) <= known for dialect in DIALECTS)
    assert len({dialect.name for dialect in DIALECTS}) == len(DIALECTS)


def test_a_sample_of_mutants_is_recognised(atlas: Atlas) -> None:
    for mutant in random.Random(11).sample(mutants(), 10):
        one = examine(atlas, account_of(atlas.bench, mutant))
        assert one.recognised, (one.name, one.sentence)
        assert one.confidence == 1, one.sentence


def test_a_sample_of_pairs_is_recognised(atlas: Atlas) -> None:
    names = sample_pairs(atlas, 4, seed=5)
    results = [examine(atlas, account_of(atlas.bench, find(name))) for name in names]
    assert len(names) == 4
    assert sum(one.recognised for one in results) == 4, [one.sentence for one in results if not one.recognised]


def test_every_operation_can_be_wrong_in_a_way_that_nobody_knows() -> None:
    """A pipeline has a gradient and no advantages, a step has parts."""

    def run(case: Case) -> dict[str, Any]:
        return {name: value * 1.7 if name == "gradient" else value for name, value in CORE.run(case).items()}

    target = FunctionTarget("deviant", run, Capabilities.everything())
    diagnosis = found(target, "pipeline/*", "distribution/*", "aggregation/lengths*", dtypes=("float64",))
    assert "it failed itself" not in diagnosis["sentence"]
    assert "gradient 1.7x" in diagnosis["sentence"]


@pytest.mark.parametrize(
    ("factor", "words"), [(0.5, "advantages 0.5x throughout"), (-1.0, "the advantages have the wrong sign")]
)
def test_advantages_that_are_wrong_below_must_are_described_all_the_same(factor: float, words: str) -> None:
    def run(case: Case) -> dict[str, Any]:
        return {name: factor * value for name, value in CORE.run(case).items()}

    target = FunctionTarget("deviant", run, Capabilities.everything(operations={"group_advantages"}))
    assert (
        words
        in found(target, "advantage/binary*", "advantage/*mixed*", "advantage/unequal*", "advantage/un*")["sentence"]
    )
