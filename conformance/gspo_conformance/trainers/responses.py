"""slime and its fork Miles: their engines stood in for, and responses as a list without padding, as Megatron's loss has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore

from ..target import LAYOUTS, Capabilities, Case, Skip
from ..tensors import NumPyArray
from . import demands
from .adapter import Settings, TrainerTarget, added, checkout, offered, parts_of, tensor, torch_kl, torch_loss
from .stubs import compile_nothing, stub

Places = list[Any]


def one_rank(*packages: str) -> str:
    """Stands in for the engines and these packages, compiles nothing, and starts a group of one rank; the commit of the checkout."""
    _, release = checkout()
    stub(
        *("megatron", "ray", "sglang", "sglang_router", "httpx", "transformers", "PIL", "wandb", "tqdm", "yaml"),
        *("pybase64", "datasets", "omegaconf", "aiohttp", "requests", "psutil", "orjson", "accelerate", "urllib3"),
        *packages,
    )
    torch.compile = compile_nothing
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    return release


def offered_of_lists(operations: Iterable[str], **options: Any) -> Capabilities:
    """What both have: a step is added up over its micro-batches, padded or packed."""
    return offered(
        ("step", "pipeline", *operations),
        "logp old_logp advantages mask offsets ref_logp behavior_logp groups rewards values",
        "objective normalizer advantages center scale ddof eps eps_placement gamma lam estimator",
        layouts=LAYOUTS,
        token_advantages=True,
        **options,
    )


def places_of(case: Case) -> Places:
    """Where the responses stand: from their first counted token to their last."""
    if "offsets" in case.inputs:
        offsets = case.inputs["offsets"].tolist()
        return [slice(start, end) for start, end in pairwise(offsets)]
    found: Places = []
    for row, mask in enumerate(case.inputs["mask"]):
        counted = np.flatnonzero(mask)
        found.append((row, slice(counted[0], counted[-1] + 1) if counted.size else slice(0, 0)))
    return found


def listed(case: Case, name: str) -> list[Any]:
    """An input of the tokens, response after response."""
    return [tensor(case.inputs[name])[place] for place in places_of(case)]


def arguments(every: Settings, fixed: Settings) -> SimpleNamespace:
    """The command line as the trainer has it: an upper width that is not given is the lower one."""
    high = every["eps_clip"] if every["eps_clip_high"] is None else every["eps_clip_high"]
    return SimpleNamespace(**(every | fixed | {"eps_clip_high": high}))


def masks_of(case: Case, places: Places) -> list[Any]:
    """The mask of each response."""
    if "mask" in case.inputs:
        counted = tensor(case.inputs["mask"], "int32")
        return [counted[place] for place in places]
    return [torch.ones(place.stop - place.start, dtype=torch.int32) for place in places]


@dataclass(frozen=True)
class ListLoss:
    """The loss of a micro-batch by the trainer, over micro-batches as Megatron adds them up.

    `call(settings, batch, logp, count, rows)` gives the loss of one of `count` micro-batches of a step with `rows` responses, and
    what Megatron counts in it; `batch["responses"]` are their parts of `logp`. `spread` gives every token the advantage of its response.
    """

    title: str
    call: Callable[[Settings, dict[str, Any], Any, int, float], tuple[Any, Any]]
    spread: Callable[[Any, list[Any]], list[Any]]

    def __call__(self, settings: Settings, case: Case) -> Mapping[str, Any]:
        """Of a step in parts, or of one micro-batch that is the whole step."""
        if "parts" in case.inputs:
            return self._step(settings, case)
        places, given = places_of(case), demands.count(case, self.title)
        rows = len(places) if given is None or settings.get("calculate_per_token_loss") else given
        return torch_loss(case, self._part(settings, case, places, 1, rows, given))

    def _step(self, settings: Settings, case: Case) -> Mapping[str, Any]:
        """Losses of micro-batches add; per token they are divided by the tokens of all of them."""
        cases = parts_of(case)
        places = [places_of(one) for one in cases]
        rows, tokens = sum(map(len, places)), _tokens(cases, places)
        outputs = [
            torch_loss(one, self._part(settings, one, own, len(cases), rows, tokens))
            for one, own in zip(cases, places, strict=True)
        ]
        return added(outputs)

    def _part(
        self, settings: Settings, case: Case, places: Places, count: int, rows: float, tokens: Any
    ) -> Callable[[Any], Any]:
        """Divided as Megatron does: by the micro-batches, or by the tokens of the step."""
        batch = self._batch(case, places)

        def loss(logp: Any) -> Any:
            responses = [logp[place] for place in places]
            found, counted = self.call(settings, batch | {"responses": responses}, logp, count, rows)
            if not settings.get("calculate_per_token_loss"):
                return found / count
            return found / (counted if tokens is None else tokens)

        return loss

    def _batch(self, case: Case, places: Places) -> dict[str, Any]:
        names = {"old_logp": "log_probs", "ref_logp": "ref_log_probs", "behavior_logp": "rollout_log_probs"}
        given = {
            key: [tensor(case.inputs[name], case.input_dtype)[place] for place in places]
            for name, key in names.items()
            if name in case.inputs
        }
        masks = masks_of(case, places)
        lengths = [len(mask) for mask in masks]
        return given | {
            "advantages": self._advantages(case, places, lengths),
            "loss_masks": masks,
            "rollout_mask_sums": [mask.sum() for mask in masks],
            "response_lengths": lengths,
            "total_lengths": [length + 1 for length in lengths],
            "unconcat_tokens": None,
        }

    def _advantages(self, case: Case, places: Places, lengths: list[int]) -> list[Any]:
        """One number a token, as `compute_advantages_and_returns` makes of one a response."""
        given = tensor(case.inputs["advantages"])
        if case.inputs["advantages"].shape == case.inputs["logp"].shape:
            return [given[place] for place in places]
        return self.spread(given, [torch.zeros(length, dtype=given.dtype) for length in lengths])


def _tokens(cases: list[Case], places: list[Places]) -> int:
    """What Megatron adds up: `num_tokens` of every micro-batch, an empty response counting 1."""
    masks = [mask for case, own in zip(cases, places, strict=True) for mask in masks_of(case, own)]
    return int(sum(torch.clamp_min(mask.sum(), 1) for mask in masks))


class ListTarget(TrainerTarget):
    """The count of a step is handed to every micro-batch, as the actor does."""

    def _step(self, case: Case) -> Mapping[str, Any]:
        return self.loss(self.settings(case), case)


@dataclass(frozen=True)
class Beside:
    """The operations beside the loss that both trainers have under other names, in float32 whatever comes in."""

    title: str

    def by_std(self, case: Case) -> bool:
        """Whether advantages of a group are divided by its standard deviation; a skip where it has no such setting."""
        _, scale = demands.center_and_scale(case, self.title, (("mean", "std"), ("mean", "none")))
        if scale == "std":
            demands.std(case, self.title, 1e-6)
        demands.single(case, self.title)
        return scale == "std"

    def kl_penalty(self, compute: Callable[..., Any], case: Case) -> Mapping[str, Any]:
        """`compute_approx_kl`."""
        demands.single(case, self.title)
        estimator = demands.estimator(case, self.title, ("k1", "k2", "k3"))
        return torch_kl(case, lambda logp, ref: compute(logp, ref, estimator))

    def whiten(self, compute: Callable[..., Any], case: Case) -> Mapping[str, Any]:
        """`distributed_masked_whiten` over one rank, times the mask as the loss does."""
        demands.single(case, self.title)
        if case.parameters.get("ddof", 1) != 1:
            raise Skip(f"{self.title} whitens with ddof 1")
        values = tensor(case.inputs["values"])
        mask = _counted(case, values)
        options = {"shift_mean": case.parameters.get("center", True), "epsilon": case.parameters.get("eps", 1e-8)}
        return {"values": (compute(values, mask, **options) * mask).numpy()}


def _counted(case: Case, values: Any) -> Any:
    """1 at the tokens that count: those of the mask, and of a packed row none behind the last offset."""
    mask = tensor(case.inputs["mask"]).int() if "mask" in case.inputs else torch.ones_like(values).int()
    if "offsets" in case.inputs:
        mask[int(case.inputs["offsets"][-1]) :] = 0
    return mask


def put(case: Case, places: Places, responses: Any) -> NumPyArray:
    """The responses where they stood, 0 at every token that is not counted."""
    found = torch.zeros_like(tensor(case.inputs["rewards"]))
    for place, one, mask in zip(places, responses, masks_of(case, places), strict=True):
        found[place] = one * mask
    return found.numpy()
