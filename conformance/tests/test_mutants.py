"""The mutants: what they are made of, that each is killed and every vector kills, and the arithmetic they stand on."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from gspo_conformance import load_vectors
from gspo_conformance.clauses import clauses
from gspo_conformance.diagnosis.census import account_of
from gspo_conformance.formats import Vector
from gspo_conformance.judge import judge
from gspo_conformance.mutants import Reference, compose, find, mutants, tape
from gspo_conformance.mutants.bench import Question, Refused, bench
from gspo_conformance.mutants.narrow import to_bfloat16, to_float16
from gspo_conformance.mutants.registry import Mutant
from gspo_conformance.mutants.score import ENOUGH, OWED, Score, Scored, margin
from gspo_conformance.resolve import load
from gspo_conformance.target import Case, Target
from gspo_conformance.words import UsageError


def _holes(vectors: Sequence[Vector], mutants: Sequence[Mutant]) -> tuple[list[Mutant], list[Vector]]:
    """The mutants that survive and the vectors that kill nothing, without finding out who else kills whom."""
    asked = bench(vectors)
    busy: set[str] = set()
    survivors: list[Mutant] = []
    for mutant in mutants:
        best = 0.0
        for index in sorted(range(len(asked.questions)), key=lambda i: _distance(asked.questions[i], mutant)):
            question = asked.questions[index]
            owed = question.vector.level in OWED and best < ENOUGH
            if (owed or question.vector.id not in busy) and asked.reaches(mutant, index):
                found = margin(question, asked.ask(mutant, index), asked.right(index))
                best = max(best, found if question.vector.level in OWED else 0.0)
                busy |= {question.vector.id} if found > 1 else set()
        survivors += [] if best >= ENOUGH else [mutant]
    idle = {question.vector.id: question.vector for question in asked.questions if question.vector.id not in busy}
    return survivors, list(idle.values())


def _distance(question: Question, mutant: Mutant) -> bool:
    return mutant.clause not in question.vector.clauses


def test_every_mutant_is_killed_and_every_vector_kills() -> None:
    survivors, idle = _holes(load_vectors(), mutants())
    assert [f"{mutant.name}: needs a vector of {mutant.clause}" for mutant in survivors] == []
    assert [vector.id for vector in idle] == []


def test_every_mutant_has_an_answer_however_large_the_normalizer() -> None:
    vector = next(one for one in load_vectors("aggregation") if one.id == "aggregation/lengths-1-3-gspo")
    parameters = {"objective": vector.parameters["objective"], "normalizer": np.inf}
    for mutant in mutants():
        mutant.run(Case("policy_loss", parameters, dict(vector.inputs), dtype="float64", outputs=("loss",)))


def test_the_score_of_a_few() -> None:
    vectors = load_vectors("aggregation")
    asked, by_id = bench(vectors), {vector.id: vector for vector in vectors}
    few = [find("aggregation.token-mean"), find("reward.kl-added")]
    found = Score([Scored(one, account_of(asked, one).margins, by_id) for one in few], vectors)
    token_mean, untested = found.scored
    assert token_mean.killed
    assert token_mean.margin >= ENOUGH
    assert "aggregation/lengths-1-3-gspo" in token_mean.margins
    assert found.survivors == [untested]
    assert "GSPO-REWARD-4" in untested.missing
    assert found.kills["aggregation/lengths-1-3-gspo"] == ["aggregation.token-mean"]
    assert {vector.id for vector in found.idle} == {vector.id for vector in vectors} - set(token_mean.margins)


def test_every_mutant_tells_its_story() -> None:
    known = clauses()
    for mutant in mutants():
        assert re.fullmatch(r"[a-z-]+\.[a-z0-9-]+", mutant.name), mutant.name
        assert mutant.clause in known, mutant.name
        assert mutant.title, mutant.name
        assert mutant.effect, mutant.name
        assert mutant.stages, mutant.name
        assert all(re.fullmatch(r"https://(github\.com/[\w.-]+/[\w.-]+/(issues|commit)|arxiv\.org/abs)/[\w.]+", link) for link in mutant.links)  # fmt: skip


def test_names_and_titles_are_used_once() -> None:
    names = [mutant.name for mutant in mutants()]
    assert len(set(names)) == len(names) >= 81
    sentences = [mutant.summary for mutant in mutants()]
    assert len(set(sentences)) == len(sentences)


def test_a_mutant_is_a_target() -> None:
    mutant = load("mutant:aggregation.token-mean")
    assert isinstance(mutant, Target)
    assert mutant.target_name == "mutant:aggregation.token-mean"


def test_a_misspelt_mutant_suggests_the_near_one() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'clip.two-sided'"):
        find("clip.two-side")


def test_two_mutants_compose() -> None:
    asked = bench(load_vectors("aggregation"))
    one, other = find("aggregation.token-mean"), find("gradient.doubled")
    both = compose(one, other)
    index = next(i for i, q in enumerate(asked.questions) if q.vector.id == "aggregation/lengths-1-3-gspo")
    alone, together = asked.ask(one, index), asked.ask(both, index)
    assert both.name == "aggregation.token-mean+gradient.doubled"
    assert both.stages == one.stages | other.stages
    assert isinstance(alone, dict)
    assert isinstance(together, dict)
    np.testing.assert_array_equal(together["gradient"], 2 * alone["gradient"])
    np.testing.assert_array_equal(together["loss"], alone["loss"])


def test_margins_agree_with_the_judge() -> None:
    asked = bench(load_vectors("surrogate")[::9])
    compared = 0
    for name in ("clip.mask", "clip.range-swapped", "gradient.no-ratio", "loss.sign", "metrics.clip-two-sided"):
        for index, question in enumerate(asked.questions):
            answer = asked.ask(find(name), index)
            assert isinstance(answer, dict)
            accepted = all(judged.ok for judged in judge(question.vector, question.case, answer))
            assert accepted == (margin(question, answer, asked.right(index)) <= 1), (name, question.key)
            compared += not accepted
    assert compared > 20


def test_a_mutant_is_asked_only_where_it_can_differ() -> None:
    asked = bench([v for v in load_vectors("advantage") if v.operation == "group_advantages"][:20])
    clip, statistics = find("clip.range-swapped"), find("advantage.batch-statistics")
    assert not any(asked.reaches(clip, index) for index in range(len(asked.questions)))
    assert all(asked.reaches(statistics, index) for index in range(len(asked.questions)))


def test_a_variant_of_a_mutant_is_no_second_one() -> None:
    with pytest.raises(UsageError, match="variants of one"):
        find("ratio.cap-10+ratio.cap-20")


def test_no_mutant_breaks_down_where_an_answer_is_due() -> None:
    asked = bench([v for v in load_vectors() if v.area in ("packing", "mask", "pipeline") and not v.refuses][::3])
    silent = [
        (mutant.name, question.key)
        for mutant in mutants()
        for index, question in enumerate(asked.questions)
        if isinstance(asked.ask(mutant, index), Refused)
    ]
    assert silent == []


def test_the_tape_agrees_with_differences() -> None:
    values = np.array([0.3, -0.7, 1.1, 0.2])
    weights = np.array([2.0, 1.0, -1.0, 0.5])

    def made(x: object) -> object:
        ratio = tape.exp(x) / (1 + tape.expm1(x) * 0.25)
        return tape.total(tape.minimum(ratio * weights, tape.clip(ratio, 0.8, 1.2) * weights) - tape.log(ratio + 2))

    leaf = tape.Var(values)
    slope = tape.gradient(made(leaf), leaf)
    steps = 1e-6 * np.eye(4)
    expected = [(made(values + step) - made(values - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(slope, expected, rtol=1e-8)


def test_a_selection_passes_exactly_zero_and_a_product_does_not() -> None:
    leaf = tape.Var(np.array([1.0, 800.0]))
    with np.errstate(all="ignore"):
        selected = tape.gradient(tape.total(tape.exp(tape.where(np.array([True, False]), leaf, 0.0))), leaf)
        multiplied = tape.gradient(tape.total(tape.exp(leaf) * np.array([1.0, 0.0])), leaf)
    assert selected[1] == 0
    assert np.isnan(multiplied[1])


def test_a_broadcast_is_summed_back() -> None:
    leaf = tape.Var(np.array([[1.0], [2.0]]))
    slope = tape.gradient(tape.total(leaf * np.ones((2, 3)) * np.array([1.0, 2.0, 3.0])), leaf)
    np.testing.assert_array_equal(slope, [[6.0], [6.0]])


def test_narrow_floats_round_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate([np.random.default_rng(7).normal(size=500), [0.0, 1 + 2**-9, 1 + 3 * 2**-9, 1e-40, 7e4, np.inf]])  # fmt: skip
    single = torch.tensor(values.astype(np.float32))
    np.testing.assert_array_equal(to_bfloat16(values), single.to(torch.bfloat16).float().numpy())
    np.testing.assert_array_equal(to_float16(values), single.to(torch.float16).float().numpy())


def test_the_reference_refuses_what_it_should() -> None:
    asked = bench(vector for vector in load_vectors() if vector.refuses)
    assert asked.questions
    for index, question in enumerate(asked.questions):
        answer = asked.right(index)
        assert isinstance(answer, Refused), question.key
        assert str(question.vector.refuses) in answer.reason, question.key


def test_a_new_mutant_is_one_small_class() -> None:
    class Halved(Reference):
        """Half the loss."""

        def loss(self) -> object:
            return super().loss() * 0.5

    question = bench(load_vectors("gradient")[:1]).questions[0]
    right, half = Reference(question.case).answer(), Halved(question.case).answer()
    for name, value in right.items():
        np.testing.assert_allclose(half[name], value / 2, rtol=1e-7)
