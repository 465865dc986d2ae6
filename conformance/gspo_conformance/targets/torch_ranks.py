"""`gspo_torch` over ranks: real processes over gloo, which cut every case among them and put its answer together again.

`torch:ddp`: each rank holds some of the responses, `torch:cp`: a part of every response. Each rank
differentiates by the whole of log π_θ, of which it uses its own part; the ranks' gradients add up to the whole.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist

import gspo_torch as gspo
from gspo_torch import distributed

from ..protocol import ProtocolError, decode, decode_output, encode, encode_array, read_case, run_message
from ..target import Capabilities, Case
from .core import Arrays, CoreTarget, Parameters, ratio_function
from .torch import Torch, gradient_of

RANKS = 2
LIMIT = 15.0
Answer = dict[str, Any]
"""`loss` and `metrics.*` are the same on every rank; `add` add up over the ranks, `times` multiply, `own` are on one rank."""


class Ranks:
    """The processes; started at the first case, and again after a failure."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._pipes: list[tuple[IO[bytes], IO[bytes]]] = []
        self._held = contextlib.ExitStack()
        weakref.finalize(self, self._held.close)

    def ask(self, case: Case) -> list[Answer]:
        """The answer of every rank; raises what one of them raised."""
        if not self._pipes:
            self._start()
        try:
            for into, _ in self._pipes:
                into.write(encode(run_message(0, case)))
                into.flush()
            answers = [_decoded(out.readline()) for _, out in self._pipes]
        except (ProtocolError, OSError) as error:
            self.stop()
            raise RuntimeError(f"torch:{self.kind}: a rank ended before it answered") from error
        except BaseException:
            self.stop()
            raise
        failed = [answer for answer in answers if "error" in answer]
        if not all(answer.get("refused") for answer in failed):
            self.stop()  # the ranks may be in different exchanges
        if failed:
            raise RuntimeError("\n".join(answer["error"] for answer in failed))
        return answers

    def stop(self) -> None:
        """Ends the processes, which hold nothing worth keeping."""
        self._held.close()
        self._pipes = []

    def _start(self) -> None:
        folder = self._held.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, "-m", __name__, self.kind, f"{folder}/store"]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        for rank in range(RANKS):
            process = subprocess.Popen([*command, str(rank)], stdin=pipe, stdout=pipe, stderr=nowhere)
            assert process.stdin is not None
            assert process.stdout is not None
            self._held.callback(_end, process, process.stdin, process.stdout)
            self._pipes.append((process.stdin, process.stdout))


def _encoded(answer: Answer) -> Answer:
    """An answer as JSON can carry it: every array as `{dtype, shape, data}`."""
    if "error" in answer:
        return answer
    return {how: {name: encode_array(value) for name, value in values.items()} for how, values in answer.items()}


def _decoded(line: bytes) -> Answer:
    answer = decode(line)
    if "error" in answer:
        return answer
    return {
        how: {name: decode_output(value, name).array.astype(value["dtype"]) for name, value in values.items()}
        for how, values in answer.items()
    }


def _end(process: subprocess.Popen[bytes], *pipes: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.close()


class RanksTarget:
    """Puts a case to the ranks and their answers together."""

    def __init__(self, kind: str, operations: set[str]) -> None:
        self.name = f"torch:{kind}"
        self.version = Torch.version
        self.capabilities = Capabilities.everything(operations=frozenset(operations))
        self._ranks = Ranks(kind)

    def run(self, case: Case) -> Mapping[str, Any]:
        """The outputs of the case as NumPy arrays."""
        answers = self._ranks.ask(case)
        # A rank without a response of its own does not know the dtype.
        found = dict(max((answer["same"] for answer in answers), key=_width))
        for name in answers[0].get("add", {}):
            found[name] = sum(answer["add"][name] for answer in answers)
        for name in answers[0].get("times", {}):
            found[name] = np.prod([answer["times"][name] for answer in answers], axis=0)
        for answer in answers:
            found |= answer.get("own", {})
        return found


def ddp() -> RanksTarget:
    """The built-in target `torch:ddp`."""
    advantages = {"group_advantages", "leave_one_out_advantages", "informative_groups"}
    return RanksTarget("ddp", {"policy_loss", "step", "pipeline", *advantages})


def cp() -> RanksTarget:
    """The built-in target `torch:cp`."""
    return RanksTarget("cp", {"policy_loss", "step", "pipeline", "ratio"})


def _width(same: dict[str, Any]) -> int:
    return max((value.dtype.itemsize for value in same.values()), default=0)


class _Rank(ABC):
    """One rank's side of a case; `alone` is the same on one process."""

    def __init__(self) -> None:
        self.alone = CoreTarget("rank", Torch(), gspo)

    def contribution(self, case: Case) -> Answer:
        """What this rank contributes, in NumPy arrays."""
        given, parameters = self.alone.arguments(case), dict(case.parameters)
        if isinstance(given, list):
            found = self.parts(given, parameters)
        else:
            found = getattr(self, f"rank_{case.operation}")(given, parameters)
        return {
            how: {name: self.alone.framework.numpy(value) for name, value in values.items()}
            for how, values in found.items()
        }

    def rank_pipeline(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """Advantages from rewards, then the loss."""
        found = self.rank_group_advantages(
            {name: arrays[name] for name in ("rewards", "groups")}, parameters.pop("advantages", {})
        )
        whole = found["add"]["advantages"].clone()
        dist.all_reduce(whole)
        del arrays["rewards"]
        answer = self.rank_policy_loss(arrays | {"advantages": whole}, parameters)
        return answer | {"add": answer["add"] | found["add"]}

    @abstractmethod
    def rank_group_advantages(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """Advantages, of which every rank adds its own."""

    @abstractmethod
    def rank_policy_loss(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """The loss and its gradient."""

    @abstractmethod
    def parts(self, parts: list[Arrays], parameters: Parameters) -> Answer:
        """The micro-batches of a step."""


def _metrics(found: gspo.PolicyLoss) -> dict[str, Any]:
    return {"loss": found.loss} | {f"metrics.{name}": value for name, value in found.metrics.items()}


class _DataRank(_Rank):
    """Responses in turn, the first to the last rank: a case of one response leaves the others without any."""

    def rank_policy_loss(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """The loss of the union."""
        objective = gspo.Objective.from_dict(parameters.pop("objective"))
        leaf = arrays["logp"].requires_grad_()
        part = _chosen(arrays, self._mine(arrays))
        found = distributed.reduce(objective, **(_NOTHING | part), **parameters, world_scale=1)
        return {"same": _metrics(found), "add": {"gradient": gradient_of(found.loss, leaf)}}

    def rank_group_advantages(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """Groups that are spread over ranks."""
        return self._of_responses("group_advantages", "advantages", arrays, parameters)

    def rank_leave_one_out_advantages(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """Groups that are spread over ranks."""
        return self._of_responses("leave_one_out_advantages", "advantages", arrays, parameters)

    def rank_informative_groups(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """Groups that are spread over ranks."""
        return self._of_responses("informative_groups", "keep", arrays, parameters)

    def _of_responses(self, function: str, output: str, arrays: Arrays, parameters: Parameters) -> Answer:
        mine = self._mine(arrays)
        part = {name: values[mine] for name, values in arrays.items()}
        found = getattr(distributed, function)(**part, **parameters)
        whole = torch.zeros(arrays["rewards"].shape, dtype=found.dtype)
        whole[mine] = found
        return {"same": {}, "add": {output: whole}}

    def parts(self, parts: list[Arrays], parameters: Parameters) -> Answer:
        """Micro-batches in turn to the ranks, which find the normaliser of the step among them."""
        objective = gspo.Objective.from_dict(parameters.pop("objective"))
        mine = {number: part for number, part in enumerate(parts) if self._owner(number) == dist.get_rank()}
        shapes = [(part["sequences"], part.get("groups")) for part in mine.values()]
        union = distributed.Union(objective, shapes, world_scale=1)
        if parameters.get("normalizer") not in (None, float(union.normalizer)):
            union = distributed.Union(objective, shapes, world_scale=1, **parameters)
        gradients = {}
        for number, part in mine.items():
            logp = part["logp"].requires_grad_()
            gradients[f"gradient.{number}"] = gradient_of(union.loss(**part), logp)
        return {"same": {"loss": union.result().loss}, "own": gradients}

    def _mine(self, arrays: Arrays) -> list[int]:
        count = arrays["rewards"].shape[0] if "rewards" in arrays else _responses(arrays["sequences"])
        return [row for row in range(count) if self._owner(row) == dist.get_rank()]

    def _owner(self, number: int) -> int:
        return dist.get_world_size() - 1 - number % dist.get_world_size()


class _ContextRank(_Rank):
    """A zig-zag part of every response."""

    def rank_policy_loss(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """The loss of the sequences, each over all ranks."""
        objective = gspo.Objective.from_dict(parameters.pop("objective"))
        leaf = arrays["logp"].requires_grad_()
        found = gspo.policy_loss(objective, **_cut(arrays), **parameters)
        return {"same": _metrics(found), "add": {"gradient": gradient_of(found.loss, leaf)}}

    def rank_group_advantages(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """Every rank has every reward; one of them says what follows."""
        found = gspo.group_advantages(**arrays, **parameters)
        return {"same": {}, "add": {"advantages": found if dist.get_rank() == 0 else torch.zeros_like(found)}}

    def rank_ratio(self, arrays: Arrays, parameters: Parameters) -> Answer:
        """One per response, or per token: 1 where a rank does not hold the token."""
        shape = arrays["logp"].shape
        split, part = _split(arrays)
        found = ratio_function(gspo, parameters["kind"])(**part)
        if parameters["kind"] in ("sequence", "product"):
            return {"same": {"ratio": found}}
        whole = torch.ones(shape, dtype=found.dtype)
        whole[..., split.positions] = found
        return {"same": {}, "times": {"ratio": whole}}

    def parts(self, parts: list[Arrays], parameters: Parameters) -> Answer:
        found = [self.rank_policy_loss(part, dict(parameters)) for part in parts]
        loss = torch.stack([one["same"]["loss"].detach() for one in found]).sum()
        gradients = {f"gradient.{number}": one["add"]["gradient"] for number, one in enumerate(found)}
        return {"same": {"loss": loss}, "add": gradients}


_NOTHING = {"old_logp": None, "advantages": None}


def _responses(sequences: Any) -> int:
    return (sequences.offsets.shape[0] - 1) if isinstance(sequences, gspo.Packed) else sequences.mask.shape[0]


def _per_token(arrays: Arrays) -> set[str]:
    """The names of arrays that have a value per token; one per response wins where both could be meant."""
    found = {name for name in arrays if name in ("logp", "old_logp", "ref_logp", "behavior_logp")}
    own = arrays["advantages"].shape if "advantages" in arrays else ()
    varying = own == arrays["logp"].shape and own != (_responses(arrays["sequences"]),)
    return found | {"advantages"} if varying else found


def _chosen(arrays: Arrays, mine: list[int]) -> Arrays:
    """The arguments of some responses; of none, where there are none."""
    sequences = arrays["sequences"]
    if not mine:
        return {"logp": arrays["logp"], "sequences": None}
    if isinstance(sequences, gspo.Padded):
        part = {name: values[mine] for name, values in arrays.items() if name != "sequences"}
        return part | {"sequences": gspo.Padded(sequences.mask[mine])}
    spans = [span for row, span in enumerate(pairwise(sequences.offsets.tolist())) if row in mine]
    at = torch.cat([torch.arange(*span) for span in spans])
    offsets = torch.tensor([0, *(high - low for low, high in spans)]).cumsum(0)
    mask = None if sequences.mask is None else sequences.mask[at]
    per_token = _per_token(arrays)
    part = {name: values[at if name in per_token else mine] for name, values in arrays.items() if name != "sequences"}
    return part | {"sequences": gspo.Packed(offsets, mask=mask)}


def _split(arrays: Arrays) -> tuple[distributed.ContextSplit, Arrays]:
    split = distributed.ContextSplit(arrays["sequences"])
    per_token = _per_token(arrays)
    part = {
        name: split.shard(values) if name in per_token else values
        for name, values in arrays.items()
        if name != "sequences"
    }
    return split, part | {"sequences": split.sequences}


def _cut(arrays: Arrays) -> Arrays:
    return _split(arrays)[1]


_KINDS: dict[str, Callable[[], _Rank]] = {"ddp": _DataRank, "cp": _ContextRank}


def main(kind: str, store: str, rank: int) -> None:
    """Answers cases from the standard input until it ends; what libraries print goes nowhere."""
    answers, sys.stdout = os.fdopen(os.dup(sys.stdout.fileno()), "wb"), sys.stderr
    os.dup2(sys.stderr.fileno(), 1)
    torch.set_num_threads(1)
    limit = timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=limit)
    target = _KINDS[kind]()
    while True:
        line = sys.stdin.buffer.readline()
        if not line:
            os._exit(0)
        answers.write(encode(_encoded(_answered(target, read_case(decode(line))))))
        answers.flush()


def _answered(target: _Rank, case: Case) -> Answer:
    """All ranks see the whole case first: what the core refuses all refuse, and none waits for another."""
    refused = True
    try:
        target.alone.native(case)
        refused = False
        return target.contribution(case)
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return {"error": text, "refused": refused}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
