"""`tokenize_trajectory_groups`, `packed_tensors_from_tokenized_results` and `loss_fn`, one after the other as the local backend calls them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..stubs import holding, stub, without_init

stub("PIL", "transformers")
without_init("art", "art.dev", "art.preprocessing", "art.utils")
holding("art.dev", TrainConfig=import_module("art.dev.train").TrainConfig)

from art.loss import shift_tensor
from art.preprocessing import tokenize
from art.preprocessing.pack import packed_tensors_from_tokenized_results

from ...target import INPUT_DTYPES, LAYOUTS, Case, Skip
from ...tensors import NumPyArray
from .. import demands
from ..adapter import Settings, TrainerTarget, added, offered, parts_of, tensor, torch_loss
from . import releases
from .dialect import DIALECT

RELEASE = version("openpipe-art")
PROMPT, PADDING, STRIDE = -1, -2, 2**32
Rows = dict[str, Any]


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """All responses in one packed row, which is one optimiser step of the Unsloth backend; advantages are those of the case."""
    if demands.count(case, "ART") is not None:
        raise Skip("ART always has a count to divide by")
    (rows,) = _packed([case])
    return torch_loss(case, lambda logp: _loss(settings, case, rows, logp, "mean"))


def _loss(settings: Settings, case: Case, rows: Rows, logp: Any, reduction: str) -> Any:
    """`loss_fn`; the model's log-probabilities stand one place before their tokens, as it computes them."""
    places = shift_tensor(rows["tokens"], PADDING)
    flat = torch.cat([logp.reshape(-1), logp.new_zeros(1)])
    new = flat[torch.where(places >= 0, places, len(flat) - 1)]
    return releases.loss(rows, new, releases.config(settings), reduction)


def _step(settings: Settings, case: Case) -> Mapping[str, Any]:
    """Micro-batches as the Megatron backend has them: packed as one batch, sums of losses over the tokens of the step."""
    cases = parts_of(case)
    parts = _packed(cases)
    tokens = max(sum(int(shift_tensor(rows["assistant_mask"], False).sum()) for rows in parts), 1)
    outputs = [
        torch_loss(one, lambda logp, one=one, rows=rows: _loss(settings, one, rows, logp, "sum") / tokens)
        for one, rows in zip(cases, parts, strict=True)
    ]
    return added(outputs)


def _packed(cases: Sequence[Case]) -> list[Rows]:
    """The rows of every case out of one call of ART's packing: one row where there is one case, else a row a response.

    The id of a token says where its numbers stand in its case. The advantages of the cases take the place of those that
    the packing has rescaled.
    """
    results = [_tokenized([_trajectories(case, index * STRIDE)], drop=False) for index, case in enumerate(cases)]
    whole = _pack([one for some in results for one in some], pack_results=len(cases) == 1)
    owners = torch.div(whole["tokens"].max(1).values, STRIDE, rounding_mode="floor")
    found: list[Rows] = []
    for index, case in enumerate(cases):
        rows = {key: values[owners == index] for key, values in whole.items()}
        rows["tokens"] = torch.where(rows["tokens"] >= 0, rows["tokens"] - index * STRIDE, rows["tokens"])
        found.append(rows | _along(rows["tokens"], advantages=per_token(case), **_sampled(case)))
    return found


def _along(tokens: Any, **given: NumPyArray) -> Rows:
    """What a case gives for every token, where the token stands."""
    spread = {key: torch.cat([tensor(values).reshape(-1), torch.zeros(1)]) for key, values in given.items()}
    return {key: values[torch.where(tokens >= 0, tokens, len(values) - 1)] for key, values in spread.items()}


def _sampled(case: Case) -> dict[str, NumPyArray]:
    """The sampler's log-probabilities, which `precalculate_logprobs` keeps beside those that it recomputes."""
    return {"original_logprobs": case.inputs["behavior_logp"]} if "behavior_logp" in case.inputs else {}


def _pack(results: list[Any], *, pack_results: bool) -> Rows:
    """`packed_tensors_from_tokenized_results`, its tensors alone."""
    lengths = [len(one.token_ids) for one in results if sum(one.assistant_mask)] or [1]
    width = sum(lengths) if pack_results else max(lengths)
    found = packed_tensors_from_tokenized_results(results, width, PADDING, **releases.packing(pack_results))
    return {key: values for key, values in found.items() if isinstance(values, torch.Tensor)}


def _trajectories(case: Case, base: int = 0) -> list[Any]:
    """Its responses, from their first counted token to their last: ART has no padding inside a row."""
    counted = _counted(case)
    plain = {"reward": releases.nothing_won(), "messages_and_choices": [], "tools": None, "additional_histories": []}
    found: list[Any] = []
    for places in _places(case):
        kept = np.flatnonzero(counted[places])
        places = places[kept[0] : kept[-1] + 1] if kept.size else places[:0]
        old = case.inputs["old_logp"].reshape(-1)[places].tolist()
        found.append(SimpleNamespace(**plain, ids=[base + at for at in places.tolist()], old=old, mask=counted[places]))
    return found


def _places(case: Case) -> list[NumPyArray]:
    """Where the tokens of each response stand in the flat arrays of the case."""
    if "offsets" in case.inputs:
        return [np.arange(start, end) for start, end in pairwise(case.inputs["offsets"].tolist())]
    return list(np.arange(case.inputs["logp"].size).reshape(case.inputs["logp"].shape))


def _counted(case: Case) -> NumPyArray:
    mask = case.inputs.get("mask")
    return np.ones(case.inputs["logp"].size, bool) if mask is None else mask.reshape(-1) != 0


def per_token(case: Case) -> NumPyArray:
    """The advantage of its response for every token that counts."""
    found = np.zeros(case.inputs["logp"].size, case.dtype)
    for places, advantage in zip(_places(case), case.inputs["advantages"], strict=True):
        found[places] = advantage
    return np.where(_counted(case), found, 0).astype(case.dtype)


def _tokenized(groups: list[list[Any]], *, drop: bool, scale: bool = True) -> list[Any]:
    """`tokenize_trajectory_groups`, with the ids of the case in the place of a tokenizer's."""
    random.seed(0)
    shuffle = {"shuffle_group_trajectories": False, **releases.dropping(drop)}
    tokenize.tokenize_trajectory = _tokenize
    return list(tokenize.tokenize_trajectory_groups(None, groups, False, scale, **shuffle))


def _tokenize(tokenizer: Any, processor: Any, history: Any, advantage: float, without: bool, one: Any, **_: Any) -> Any:
    """A response after the last token of its prompt."""
    return releases.result(
        advantage=advantage,
        chat="",
        token_ids=[PROMPT, *one.ids],
        input_pos=list(range(len(one.ids) + 1)),
        assistant_mask=[0, *map(int, one.mask)],
        logprobs=[math.nan, *one.old],
        pixel_values=None,
        image_grid_thw=None,
        trajectory=one,
        choice_offsets=[],
        extra_logprobs={},
        _tokenizer=tokenizer,
    )


def group_advantages(case: Case) -> Mapping[str, Any]:
    """The advantages of `tokenize_trajectory_groups`, before the packing rescales them; 0 for what it leaves out."""
    scale = _scaled(case)
    one = {"messages_and_choices": [], "tools": None, "additional_histories": [], "old": [-1.0], "mask": [1]}
    rewards = case.inputs["rewards"].tolist()
    trajectories = [SimpleNamespace(**one, reward=reward, ids=[at]) for at, reward in enumerate(rewards)]
    found = np.zeros(len(rewards), case.dtype)
    for result in _tokenized(_grouped(case, trajectories), drop=True, scale=scale):
        found[result.trajectory.ids[0]] = result.advantage
    return {"advantages": found}


def _scaled(case: Case) -> bool:
    """`scale_rewards` for these parameters."""
    asked = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"} | dict(case.parameters)
    plain = (asked["ddof"], asked["eps"], asked["eps_placement"]) == (0, 1e-6, "std")
    if asked["center"] != "mean" or asked["scale"] not in ("std", "none") or (asked["scale"] == "std" and not plain):
        raise Skip(
            "ART takes the mean of the group and divides by its standard deviation, ddof 0, plus 1e-6, or does not divide"
        )
    return bool(asked["scale"] == "std")


def _grouped(case: Case, trajectories: list[Any]) -> list[list[Any]]:
    groups = case.inputs["groups"].tolist()
    return [
        [one for one, own in zip(trajectories, groups, strict=True) if own == group] for group in dict.fromkeys(groups)
    ]


class ArtTarget(TrainerTarget):
    """A step is packed as a whole; from rewards on, advantages are those that the packing has rescaled."""

    def _step(self, case: Case) -> Mapping[str, Any]:
        return _step(self.settings(case), case)

    def _pipeline(self, case: Case) -> Mapping[str, Any]:
        """Rewards, advantages and the rows of one batch by ART's own functions, nothing put in between."""
        parameters = dict(case.parameters)
        scale = _scaled(replace(case, parameters=parameters.pop("advantages")))
        learnt = replace(case, operation="policy_loss", parameters=parameters)
        settings = self.settings(learnt)
        trajectories = _trajectories(case)
        for one, reward in zip(trajectories, case.inputs["rewards"].tolist(), strict=True):
            one.reward = reward
        results = _tokenized(_grouped(case, trajectories), drop=True, scale=scale)
        rows = _pack(results, pack_results=True)
        found = torch_loss(learnt, lambda logp: _loss(settings, learnt, rows, logp, "mean"))
        spread = dict(zip(rows["tokens"][0].tolist(), rows["advantages"][0].tolist(), strict=True))
        advantages = [next((spread[at] for at in one.ids if spread.get(at)), 0.0) for one in trajectories]
        return {"advantages": np.array(advantages, case.dtype), **found}


CAPABILITIES = offered(
    ("step", "pipeline", "group_advantages"),
    "logp old_logp advantages mask offsets behavior_logp groups rewards",
    "objective normalizer advantages center scale ddof eps eps_placement",
    layouts=LAYOUTS,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that `loss_fn` and `importance_sampling_level` claim, in float32: rows are float32 on disk."""
    versions = {"openpipe-art": RELEASE, "torch": torch.__version__}
    return ArtTarget(versions, DIALECT, RELEASE, policy_loss, {"group_advantages": group_advantages}, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level="sequence"` and a clip range, all else as it comes: `loss_fn="cispo"`."""
    return claims().as_documented()
