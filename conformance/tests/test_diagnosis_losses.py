"""What the diagnosis sees of losses that are no mutants: response by response, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gspo_core
from gspo_conformance import load_vectors, loss_target
from gspo_conformance.connection import InProcess
from gspo_conformance.diagnosis.evidence import evidence_of
from gspo_conformance.diagnosis.patterns import observed
from gspo_conformance.diagnosis.verdict import atlas_of
from gspo_conformance.mutants.atlas import Atlas
from gspo_conformance.runner import run_vectors

from .losses import by_token, centred, formed, last_place, mean, narrow, no_end, paper, rest, spans, tied
from .test_diagnosis import deviant, found


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return atlas_of(load_vectors())


STRANGERS: dict[str, tuple[Any, str]] = {
    "divided twice": (lambda new, old, a, m: paper(new, old, a, m).mean() / len(a), "divided by the number of responses"),
    "one too long": (lambda new, old, a, m: paper(new, old, a, m, length=m.sum(1) + 1).mean(), "a length that is 1 too large"),
    "a temperature": (lambda new, old, a, m: paper(new, old, a, m, scale=1 / 0.7).mean(), "1.43x, farther away another multiple: the log-ratio is scaled"),
    "small advantages": (lambda new, old, a, m: paper(new, old, a.clamp(-1, 1), m).mean(), "held to ±1"),
    "normalised twice": (lambda new, old, a, m: paper(new, old, centred(a), m).mean(), "centred over the batch and divided by its standard deviation"),
    "a spread taken out": (lambda new, old, a, m: paper(new, old, a / a.std(correction=0) if len(a) > 1 else a, m).mean(), "divided by the standard deviation of the batch"),
    "an epsilon": (lambda new, old, a, m: paper(new, old, a, m, length=m.sum(1) + 1e-4).mean(), "that of a length with 0.0001 added to it"),
    "eight ranks": (lambda new, old, a, m: paper(8 * new - 7 * new.detach(), old, a, m).mean(), "the loss is right"),
    "no end": (lambda new, old, a, m: paper(new, old, a, no_end(m)).sum() / m.sum() * 3, "the last counted token of a response has no gradient"),
    "the last place": (lambda new, old, a, m: paper(new, old, a, m, length=last_place(m)).mean(), "only in responses with gaps"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_a_loss_that_is_no_mutant_is_led_to(name: str) -> None:
    loss, words = STRANGERS[name]
    diagnosis = found(loss_target(loss), "mask/*", "surrogate/paper-*", "gradient/*")
    assert diagnosis["sentence"].startswith("unknown deviation; "), diagnosis["sentence"]
    assert words in diagnosis["sentence"]
    assert "wrong shape" not in diagnosis["sentence"]
    assert "numerics.non-finite-accepted" not in diagnosis["sentence"]


SEEN: dict[str, tuple[Any, str]] = {
    "no end, and divided twice": (lambda new, old, a, m: paper(torch.where(no_end(m), new, new.detach()), old, a, m).mean() / len(a), "near ratio 1 the gradient is divided by the number of responses"),
    "no end, and a temperature": (lambda new, old, a, m: paper(torch.where(no_end(m), new, new.detach()), old, a, m, scale=1 / 0.7).mean(), "1.43x, farther away another multiple: the log-ratio is scaled"),
    "a tie": (lambda new, old, a, m: tied(new, old, a, m).mean(), "inside the clip range the gradient is 0.5x, outside it is right"),
    "a wider clip": (lambda new, old, a, m: paper(new, old, a, m, clip=(3e-3, 4e-3)).mean(), "A > 0 is clipped from a ratio between 1.002 and"),
    "a bound of the wrong sign": (lambda new, old, a, m: paper(new, old, a, m, clip=(-3e-4, 4e-4)).mean(), "A < 0 is clipped from a ratio between 1.00033 and"),
    "an old policy that is new": (lambda new, old, a, m: paper(new, new.detach(), a, m).mean(), "log s is 0: the ratio is 1"),
    "a ratio in bfloat16": (lambda new, old, a, m: narrow(new, old, a, m).mean(), "to both sides, as rounding to bfloat16 or"),
    "one response too few": (lambda new, old, a, m: paper(new, old, a, m).sum() / max(1, len(a) - 1), "that of a mean over one response too few"),
    "three responses": (lambda new, old, a, m: paper(new, old, a, m).sum() / 3, "divided by 3 in place of the number of responses"),
    "other people's": (lambda new, old, a, m: paper(new, old, a.roll(1), m).mean(), "responses have the advantages of others"),
    "an entropy bonus": (lambda new, old, a, m: paper(new, old, a, m).mean() + 0.001 * torch.where(m, new, 0.0).sum(), "something besides the surrogate is in the loss"),
    "the last one lost": (lambda new, old, a, m: paper(new, old, a, m)[: max(1, len(a) - 1)].sum() / len(a), "the last response of a batch has no gradient"),
    "bfloat16 at the end": (lambda new, old, a, m: paper(new, old, a, m).bfloat16().mean().float(), "every wrong loss is a bfloat16 number"),
    "bad ones lost": (lambda new, old, a, m: torch.where(a < 0, paper(new, old, a, m).detach(), paper(new, old, a, m)).mean(), "responses with A < 0 have no gradient"),
    "a length in the ratio": (lambda new, old, a, m: formed(new, old, a, m, length=m.sum(1) + 1), "log s is that of a length that is 1 too large"),
    "a dual bound": (lambda new, old, a, m: torch.where(a < 0, paper(new, old, a, m).clamp(max=-5 * a), paper(new, old, a, m)).mean(), "on: a dual bound that nobody asked for"),
    "a dual bound near 1": (lambda new, old, a, m: torch.where(a < 0, paper(new, old, a, m).clamp(max=-1.0006 * a), paper(new, old, a, m)).mean(), "A < 0 has no gradient from a ratio between 1.0005 and 1.0006 on"),
    "a bounded loss": (lambda new, old, a, m: paper(new, old, a, m).clamp(max=3).mean(), "only with A < 0 where s |A| is 3.05 and more"),
    "certain tokens": (lambda new, old, a, m: paper(new.clamp(max=-1e-6), old, a, m).mean(), "the gradient differs between tokens of one response"),
    "bad ones half": (lambda new, old, a, m: paper(new, old, torch.where(a < 0, a / 2, a), m).mean(), "the gradient is wrong only where A < 0, 0.5x there"),
    "long ones dropped": (lambda new, old, a, m: paper(new, old, a * (m.sum(1) < m.shape[1]), m).mean(), "only in responses as long as the batch is wide"),
    "a short cut": (lambda new, old, a, m: paper(new, old, a, m, length=torch.ones(len(a)) if m.all() else None).mean(), "the gradient is wrong only in batches without padding"),
    "pairs twice": (lambda new, old, a, m: paper(new, old, a * (1 + (m.sum(1) == 2)), m).mean(), "the gradient is wrong only in responses of 2 tokens"),
    "nothing for little": (lambda new, old, a, m: paper(new, old, a * (a.abs() > 1e-3), m).mean(), "the gradient is wrong only where |A| is 0.000977 and less"),
    "a leak above": (lambda new, old, a, m: paper(new, old, a, m).mean() - torch.where((a > 0) & m.any(1), a * torch.relu((torch.where(m, new - old, 0.0).sum(1) / m.sum(1).clamp(min=1)).clamp(max=9).exp() - 1 - 4e-4), 0.0).mean(), "the gradient is wrong only with A > 0 where it is due to be clipped"),
    "gaps in the length": (lambda new, old, a, m: paper(new, old, a, m, length=spans(m)).mean(), "the gradient is wrong only in responses with gaps in the mask"),
    "advantages held at 5": (lambda new, old, a, m: paper(new, old, a.clamp(-5, 5), m).mean(), "the gradient is that of advantages held to ±5"),
    "good ones held at 5": (lambda new, old, a, m: paper(new, old, a.clamp(max=5), m).mean(), "the gradient is that of advantages held to 5"),
    "one held": (lambda new, old, a, m: paper(new, old, a.clamp(-300, 300), m).mean(), "in one response alone, that with the largest |A|, 512, 0.586x there"),
    "a loss held": (lambda new, old, a, m: paper(new, old, a, m).clamp(max=0.01).mean(), "the loss of a response is held at 0.01"),
    "one ratio": (lambda new, old, a, m: -(torch.exp(torch.where(m, new - old, 0.0).sum()) * a).mean(), "all tokens of a batch have one gradient, as where the ratio is one of the whole batch"),
    "one mean ratio": (lambda new, old, a, m: -((r := torch.exp(torch.where(m, new - old, 0.0).sum() / m.sum())) * a).minimum(r.clamp(1 - 3e-4, 1 + 4e-4) * a).mean(), "all tokens of a batch have one gradient"),
    "a cap of log s": (lambda new, old, a, m: paper(mean(new - old, m).clamp(-5, 5)[:, None].expand_as(new), torch.zeros_like(old), a, m).mean(), "no gradient where |log s| is above a bound between 3 and 5.5: a cap that nobody asked for"),
    "all tokens summed": (lambda new, old, a, m: (paper(new, old, a, m) * m.sum(1)).sum(), "near ratio 1 the gradient is that of a sum over all tokens"),
    "times log π": (lambda new, old, a, m: (paper(new, old, torch.ones_like(a), m, clip=(1, 1e9)) * a * mean(new, m)).mean(), "near ratio 1 the gradient is multiplied by 1 + the mean log-probability"),
    "no response of one": (lambda new, old, a, m: (paper(new, old, a, m) * (m.sum(1) > 2)).mean(), "only in responses of 2 tokens and fewer"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen_response_by_response(name: str, atlas: Atlas) -> None:
    loss, words = SEEN[name]
    texts = seen(loss_target(loss), atlas)
    assert any(words in text for text in texts), texts


BY_TOKEN: dict[str, tuple[Any, str]] = {
    "a wider clip": (lambda new, old, a, m: by_token(new, old, a, m, high=0.28).mean(), "A > 0 is clipped from a ratio between 1.2482 and 1.28403 on, not from 1.2"),
    "small advantages": (lambda new, old, a, m: by_token(new, old, a.clamp(-1, 1), m).mean(), "near ratio 1 the advantages are held to ±1"),
    "no start": (lambda new, old, a, m: (by_token(new, old, a, m & (m.cumsum(1) > 1)) * rest(m)).mean(), "the first counted token of a response has no gradient"),
    "no end": (lambda new, old, a, m: (by_token(new, old, a, no_end(m)) * rest(m)).mean(), "the last counted token of a response has no gradient"),
    "the end twice": (lambda new, old, a, m: (2 * by_token(new, old, a, m) - by_token(new, old, a, no_end(m)) * rest(m)).mean(), "the last counted token of a response has 2x the gradient"),
    "no clip": (lambda new, old, a, m: -(torch.exp(torch.where(m, new - old, 0.0)) * a[:, None] * m).sum(1).div(m.sum(1).clamp(min=1)).mean(), "the gradient is wrong only where it is due to be clipped"),
    "four tokens": (lambda new, old, a, m: by_token(torch.where(m.cumsum(1) > 4, new.detach(), new), old, a, m).mean(), "the gradient is wrong only from counted token 5 of a response on"),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_TOKEN)
def test_what_is_seen_token_by_token(name: str, atlas: Atlas) -> None:
    loss, words = BY_TOKEN[name]
    texts = seen(loss_target(loss, objective="ppo"), atlas)
    assert any(words in text for text in texts), texts


def test_a_weight_of_cispo_that_is_differentiated_is_seen_where_it_is_held(atlas: Atlas) -> None:
    """Hunts -clip(w) A, the loss of TorchRL's CISPO, told as an unknown deviation alone."""

    def loss(new: Any, old: Any, a: Any, m: Any) -> Any:
        weight = torch.exp(torch.where(m, new - old, 0.0)).clamp(max=5)
        return -(weight * a[:, None])[m].mean()

    texts = seen(loss_target(loss, objective="cispo"), atlas)
    assert "tokens whose weight is held at its bound have no gradient: the weight is differentiated" in texts


def test_a_factor_beside_the_weights_of_cispo_is_seen(atlas: Atlas) -> None:
    def loss(new: Any, old: Any, a: Any, m: Any) -> Any:
        weight = torch.exp(torch.where(m, new - old, 0.0)).clamp(max=5).detach()
        return -(weight * a[:, None] * new)[m].sum()

    assert "near ratio 1 the gradient is multiplied by the number of tokens" in seen(
        loss_target(loss, objective="cispo"), atlas
    )


def test_a_factor_of_each_batch_is_no_scaled_log_ratio(atlas: Atlas) -> None:
    """Hunts "the log-ratio is scaled" of a token mean over the longest response times their number."""
    held = gspo_core.Objective.dapo().replace(aggregation="token_mean")

    def loss(new: Any, old: Any, a: Any, m: Any) -> Any:
        ratio, a = torch.exp(torch.where(m, new - old, 0.0)), a[:, None]
        return (-torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a) * m).sum() / (m.sum(1).max() * len(a))

    texts = seen(loss_target(loss, objective=held), atlas)
    assert "the responses of a batch are off by one factor, other batches by another" in texts
    assert not any("scaled" in text for text in texts)


def product(new: Any, old: Any, a: Any, m: Any) -> Any:
    return -(torch.exp(torch.where(m, new - old, 0.0).sum(1)) * a).mean()


def test_a_ratio_whose_mistake_hides_that_of_the_clip_is_put_together_with_it() -> None:
    assert found(loss_target(product))["mutants"] == ["ratio.no-length-normalisation", "clip.none"]


def test_a_second_mistake_that_most_answers_it_moves_speak_against_is_not_named() -> None:
    """Hunts `mask.prefix-assumed` said of a token mean whose ratio counts what lies between a response's tokens."""

    def loss(new: Any, old: Any, a: Any, m: Any) -> Any:
        s = mean(new - old, torch.arange(m.shape[1]) < (last_place(m) * m.any(1))[:, None]).detach()[:, None]
        ratio, a = torch.exp(new - new.detach() + s), a[:, None]
        value = -torch.minimum(ratio * a, ratio.clamp(1 - 3e-4, 1 + 4e-4) * a)
        return (value * m).sum() / m.sum()

    told = found(loss_target(loss))
    assert told["mutants"] == ["aggregation.token-mean"]
    assert told["sentence"].endswith("explains 69 of 83 answers, not where there are gaps or left padding in the mask")


def test_of_equal_pairs_the_one_in_one_place_is_named() -> None:
    told = found(
        loss_target(lambda new, old, a, m: (paper(new, old, a, m) * m.sum(1)).sum()), "aggregation/*", "mask/*"
    )
    assert told["mutants"] == ["aggregation.token-sum", "aggregation.response-sum"]


def test_what_follows_from_a_range_beside_the_papers_is_not_said_of_another() -> None:
    """Hunts "nothing is clipped" of GRPO with 0.2 on both sides."""
    told = found(loss_target(lambda new, old, a, m: by_token(new, old, a, m, high=0.2).mean(), objective="grpo"))
    assert told["mutants"] == ["clip.default-range"]
    assert "nothing is clipped" not in told["sentence"]
    assert told["equivalents"] == ["clip.symmetric"]


def test_constants_that_fit_some_answers_alone_are_not_the_nearest() -> None:
    """Hunts "nearest is `clip(high=0.000301, dual=0.01)`" of a loss held at 0.01."""
    told = found(loss_target(lambda new, old, a, m: paper(new, old, a, m).clamp(max=0.01).mean()))["sentence"]
    assert "held at 0.01" in told
    assert "clip(" not in told


def test_a_constant_divisor_is_told_from_a_longer_length_where_all_responses_are_of_one() -> None:
    constant = loss_target(
        lambda new, old, a, m: (paper(new, old, a, m, clip=(0.2, 0.2)) * m.sum(1)).sum() / (1024 * len(a)),
        clip=(0.2, 0.2),
    )
    assert "divided by 1024 in place of the length" in found(constant)["sentence"]


def test_a_dual_bound_beside_a_clamp_is_not_called_a_bound_of_the_loss() -> None:
    def loss(new: Any, old: Any, a: Any, m: Any) -> Any:
        each = paper((new - old).clamp(-20, 20), torch.zeros_like(old), a, m)
        return torch.where(a < 0, torch.minimum(each, -5 * a), each).mean()

    told = found(loss_target(loss))["sentence"]
    assert told.startswith("unknown deviation; A < 0 has no gradient from a ratio between")
    assert "ratio.token-clamp" in told


NOT_SEEN: dict[str, tuple[Any, str]] = {
    "padding in the sum": (lambda new, old, a, m: paper(new, old, a, torch.ones_like(m), length=m.sum(1).clamp(min=1)).mean(), "advantages of others"),
    "a dual bound": (lambda new, old, a, m: torch.where(a < 0, paper(new, old, a, m).clamp(max=-1.0006 * a), paper(new, old, a, m)).mean(), "the loss of a response is held"),
    "a soft clip": (lambda new, old, a, m: -(2 * torch.sigmoid(2 * paper(new, old, -torch.ones_like(a), m, clip=(1, 1e9)) - 2) * a).mean(), "a dual bound"),
    "no factor s": (lambda new, old, a, m: paper(new, old, a, m).mean() * 0 - (a * paper(new, old, -torch.ones_like(a), m).log()).mean(), "rounding"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_SEEN)
def test_what_is_not_there_is_not_seen(name: str, atlas: Atlas) -> None:
    loss, words = NOT_SEEN[name]
    texts = seen(loss_target(loss), atlas)
    assert texts
    assert not any(words in text for text in texts), texts


def test_the_number_of_responses_beside_normalised_advantages_is_told(atlas: Atlas) -> None:
    texts = seen(loss_target(lambda new, old, a, m: paper(new, old, centred(a), m).sum()), atlas, "aggregation")
    words = "centred over the batch and divided by its standard deviation, times the number of responses"
    assert any(words in text for text in texts), texts


def test_digits_that_are_cut_off_are_seen(atlas: Atlas) -> None:
    texts = seen(deviant(lambda name, value, case: np.vectorize(lambda x: float(f"{x:.6g}"))(value)), atlas)
    assert "every number of a wrong answer comes with at most 6 significant digits: float32 needs 9" in texts


def test_nan_is_a_number_of_no_dtype(atlas: Atlas) -> None:
    """Hunts "float16" said of gradients that are NaN but for a few."""
    texts = seen(deviant(lambda name, value, case: np.full_like(value, 129 / 256 if value.size % 2 else np.nan)), atlas)
    assert "every wrong loss is a bfloat16 number: it is computed or stored too narrowly" in texts
    assert not any(text.startswith("every wrong gradient") for text in texts)


def seen(target: Any, atlas: Atlas, *areas: str) -> list[str]:
    """What is observed of a target's answers to what its run is judged by, without a search for a culprit."""
    chosen = [vector for area in areas or ("mask", "surrogate", "gradient") for vector in load_vectors(area)]
    run = run_vectors(InProcess(target), [vector for vector in chosen if vector.operation == "policy_loss"])
    return observed(
        [item for item in evidence_of(run, atlas) if item.result and run.counts_for_exit(item.result)], atlas
    )
