"""A program that speaks the protocol with the standard library alone, rightly or with one of the faults in `FAULTS`.

gspo check "cmd:python speaker.py"
gspo check "cmd:python speaker.py hang"
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

CAPABILITIES = {
    "operations": ["policy_loss", "ratio"],
    "dtypes": ["float32", "float64"],
    "gradient": True,
    "objectives": [
        {
            "ratio": "sequence",
            "surrogate": {"kind": "clip", "dual": None},
            "aggregation": {"mode": "sequence_mean_token_mean", "count": "all"},
            "penalty": None,
            "correction": [],
            "log_ratio_cap": None,
        }
    ],
    "inputs": ["logp", "old_logp", "advantages", "mask"],
    "parameters": ["objective", "kind"],
}
Message = dict[str, Any]


def rows(entry: Message) -> list[list[Any]]:
    """An array of two axes as lists."""
    height, width = entry["shape"]
    return [entry["data"][i * width : (i + 1) * width] for i in range(height)]


def ratios(inputs: Message) -> list[float]:
    """exp of the mean log-ratio over counted tokens."""
    found = []
    for new, old, mask in zip(*(rows(inputs[name]) for name in ("logp", "old_logp", "mask")), strict=True):
        terms = [n - o for n, o, counted in zip(new, old, mask, strict=True) if counted]
        found.append(math.exp(math.fsum(terms) / len(terms)) if terms else 1.0)
    return found


def policy_loss(case: Message) -> Message:
    """The paper's loss and its gradient."""
    inputs, clip = case["inputs"], case["parameters"]["objective"]["surrogate"]
    masks, found = rows(inputs["mask"]), ratios(inputs)
    values, gradient = [], []
    for s, a, mask in zip(found, inputs["advantages"]["data"], masks, strict=True):
        low, high, counted = 1 - clip["low"], 1 + clip["high"], sum(mask)
        values.append(min(s * a, min(max(s, low), high) * a) if counted else 0.0)
        closed = a == 0 or (a > 0 and s > high) or (a < 0 and s < low)
        slope = 0.0 if closed or not counted else -s * a / (counted * len(masks))
        gradient.append([slope if one else 0.0 for one in mask])
    return {"loss": -math.fsum(values) / len(masks), "gradient": gradient}


def right(message: Message) -> Message:
    """The reply to one question."""
    case = message["case"]
    if case["operation"] == "policy_loss":
        return {"seq": message["seq"], "outputs": policy_loss(case)}
    if case["parameters"]["kind"] != "sequence":
        return {
            "seq": message["seq"],
            "skipped": {"reason": "the sequence ratio alone", "url": "https://example.org/1"},
        }
    return {"seq": message["seq"], "outputs": {"ratio": ratios(case["inputs"])}}


def say(message: Any) -> None:
    """One line on stdout."""
    sys.stdout.write(message if isinstance(message, str) else json.dumps(message, allow_nan=False) + "\n")
    sys.stdout.flush()


def _crash(message: Message) -> None:
    sys.stderr.write("about to die\n")
    sys.stderr.flush()
    os.abort()


def _answer_without(name: str) -> Callable[[Message], None]:
    def answer(message: Message) -> None:
        reply = right(message)
        reply.get("outputs", {}).pop(name, None)
        say(reply)

    return answer


def _answer_with(change: Callable[[Message, Message], Any]) -> Callable[[Message], None]:
    def answer(message: Message) -> None:
        reply = right(message)
        if "outputs" in reply:
            reply["outputs"] = change(reply["outputs"], message["case"])
        say(reply)

    return answer


def _each(number: Any) -> Callable[[Message, Message], Message]:
    def fill(value: Any) -> Any:
        return [fill(item) for item in value] if isinstance(value, list) else number

    return lambda outputs, case: {name: fill(value) for name, value in outputs.items()}


def _echo(outputs: Message, case: Message) -> Message:
    return {name: case["inputs"]["logp"] if isinstance(value, list) else 0.0 for name, value in outputs.items()}


def _few(outputs: Message, case: Message) -> Message:
    return {name: value[:-1] if isinstance(value, list) else value for name, value in outputs.items()}


def _crash_on_float64(message: Message) -> None:
    if message["case"]["dtype"] == "float64":
        sys.exit(7)
    say(right(message))


def _half_a_line(message: Message) -> None:
    say('{"seq": ')
    sys.exit(0)


def _twice(message: Message) -> None:
    say(right(message))
    say({"progress": 0.5})


FAULTS: dict[str, Callable[[Message], None]] = {
    "hang": lambda message: time.sleep(3600),
    "crash": _crash,
    "crash-on-float64": _crash_on_float64,
    "garbage": lambda message: say("loss = 0.25\n"),
    "bare-nan": lambda message: say(f'{{"seq": {message["seq"]}, "outputs": {{"loss": NaN}}}}\n'),
    "not-an-object": lambda message: say([1, 2]),
    "half-a-line": _half_a_line,
    "oversized": lambda message: say("x" * (2**20) + "\n"),
    "wrong-seq": lambda message: say(right(message) | {"seq": message["seq"] + 1}),
    "malformed": lambda message: say({"seq": message["seq"], "outputs": {"loss": "small", "ratio": "large"}}),
    "unequal-rows": lambda message: say(
        {"seq": message["seq"], "outputs": {"gradient": [[1], [1, 2]], "ratio": [1, [2]]}}
    ),
    "two-lines": _twice,
    "error": lambda message: say(
        {"seq": message["seq"], "error": {"message": "division by zero", "traceback": "line 1"}}
    ),
    "lies": _answer_without("gradient"),
    "nan": _answer_with(_each("nan")),
    "too-few": _answer_with(_few),
    "echo": _answer_with(_echo),
    "null": _answer_with(lambda outputs, case: {}),
}
HANDSHAKES: dict[str, Any] = {
    "banner": "Welcome!\n",
    "next-version": {"version": 2, "implementation": {"name": "x"}, "capabilities": {}},
    "misspelt-capability": {"version": 1, "implementation": {"name": "x"}, "capabilities": {"operation": []}},
    "unknown-operation": {
        "version": 1,
        "implementation": {"name": "x"},
        "capabilities": {"operations": ["policy_los"]},
    },
    "nameless": {"version": 1, "implementation": {}, "capabilities": {}},
    "refusal": {"error": {"message": "no GPU here"}},
    "silent": "",
}


def main(mode: str) -> None:
    """Answers until it is stopped."""
    hello = {"version": 1, "implementation": {"name": "speaker", "language": "Python"}, "capabilities": CAPABILITIES}
    for line in sys.stdin:
        message = json.loads(line)
        if message["cmd"] == "stop":
            return
        if message["cmd"] == "start":
            say(HANDSHAKES.get(mode, hello))
            if mode == "silent":
                sys.exit("nothing to say")
        elif mode in FAULTS:
            FAULTS[mode](message)
        else:
            say(right(message))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "right")
