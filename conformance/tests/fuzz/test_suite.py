"""The suite's readers: vectors, records, traces, protocol messages and configurations are read, or refused in one sentence."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from gspo_conformance.audit.shards import Broken
from gspo_conformance.audit.trace import read_trace
from gspo_conformance.formats import VECTORS, read_vector
from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.reading import read_settings
from gspo_conformance.lint.report import FORMATS as LINT_FORMATS
from gspo_conformance.lint.report import render as render_lint
from gspo_conformance.protocol import ProtocolError, decode, encode, read_case, read_hello, read_reply
from gspo_conformance.reports import FORMATS, render
from gspo_conformance.reports.reading import read
from gspo_conformance.trainers.dialect import Inexpressible
from gspo_conformance.trainers.room import rooms
from gspo_conformance.words import UsageError

WORDS = (
    "", "x", "nan", "inf", "NaN", "1e999", "0x1.0p-1", "0x1.0p99999", "float32", "int64", "float16", "..", "/etc/passwd",
    "long.safetensors", "\0", "\ud800", "\x1b[31m", "<b>", "sequence", "token", "true", "null", "grpo", "-1", "3e-4", "gspo",
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, 1, -1, 2, 2**31, 2**63, 10**400)),
    st.sampled_from((0.0, 0.5, -0.5, 1e-3, 1e300, -1e300)),
    st.sampled_from(WORDS),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of `tree` with one place removed, replaced, repeated, or a stranger beside it."""
    if not isinstance(tree, (dict, list)) or not tree or draw(st.integers(0, 4)) == 0:
        return draw(TREES)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    key = draw(st.sampled_from(sorted(copy) if isinstance(copy, dict) else range(len(copy))))
    action = draw(st.integers(0, 9))
    if action == 0:
        del copy[key]
    elif action == 1 and isinstance(copy, list):
        copy.append(copy[key])
    elif action == 1:
        copy[draw(st.sampled_from(WORDS))] = draw(TREES)
    else:
        copy[key] = changed(draw, copy[key])
    return copy


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes removed, doubled or replaced."""
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        piece = draw(
            st.sampled_from((b"", b"[", b"{", b'"', b"\0", b"\xff", b"9" * 30, b"-", b"e9", content[at : at + 20]))
        )
        content = content[:at] + piece + content[at + draw(st.integers(0, 3)) :]
    return content


def refused(error: Exception) -> None:
    if len(str(error)) > 1500:
        raise AssertionError(f"not a short sentence: {str(error)[:200]}") from error


HELLO = {
    "version": 1,
    "implementation": {"name": "x", "lib": "1"},
    "capabilities": {
        "operations": ["policy_loss"],
        "gradient": True,
        "objectives": [{"ratio": "token"}],
        "inputs": ["logp"],
    },
}
ARRAY = {"dtype": "float32", "shape": [2, 2], "data": [1.0, "nan", 2, -3.5]}
REPLIES = (
    {"seq": 1, "outputs": {"loss": -0.25, "gradient": [[1, 2], [3, "inf"]], "ratio": ARRAY}},
    {"seq": 1, "skipped": {"reason": "no", "url": None}},
    {"seq": 1, "error": {"message": "no", "traceback": "line 1"}},
)
CASE = {
    "cmd": "run", "seq": 1,
    "case": {"id": "a/b", "operation": "ratio", "parameters": {"kind": "token"}, "dtype": "float32", "input_dtype": None,
             "outputs": ["ratio"], "inputs": {"logp": ARRAY, "parts": [{"logp": ARRAY}]}},
}  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A reader and a line for it."""
    reader, whole = draw(
        st.sampled_from([(read_hello, HELLO), (read_case, CASE), *((read_reply, one) for one in REPLIES)])
    )
    return reader, damaged(draw, json.dumps(changed(draw, whole)).encode("utf-8", "surrogatepass"))


def is_message_or_refused(case: tuple[Any, bytes]) -> None:
    reader, line = case
    try:
        reader(decode(line))
    except ProtocolError as error:
        refused(error)


def test_protocol_messages(fuzz: Any) -> None:
    fuzz(messages(), is_message_or_refused, 30)


SMALL = [path for path in sorted(VECTORS.glob("*/*.json")) if path.stat().st_size < 3000][::40]


@st.composite
def vectors(draw: st.DrawFn) -> bytes:
    """A vector with something changed."""
    whole = json.loads(draw(st.sampled_from(SMALL)).read_text(encoding="utf-8"))
    return damaged(draw, json.dumps(changed(draw, whole)).encode("utf-8", "surrogatepass"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_vectors(fuzz: Any, folder: Path) -> None:
    path = folder / "x.json"

    def is_vector_or_refused(content: bytes) -> None:
        path.write_bytes(content)
        try:
            vector = read_vector(path)
        except ValueError as error:
            return refused(error)
        try:
            _ = vector.inputs, vector.outputs, [(one.value, one.scale, one.rest) for one in vector.expected.values()]
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            refused(error)  # the numbers of a vector are decoded when they are asked for
        return None

    fuzz(vectors(), is_vector_or_refused, 20)


RECORD = [
    {"type": "header", "schema": 1, "target": "x", "started": "2026-01-01T00:00:00+00:00", "level": "MUST",
     "suite": {"version": "1", "digest": "0", "vectors": 1}, "implementation": {"name": "x"}, "capabilities": {}},
    {"type": "result", "id": "ratio/sequence-ragged", "dtype": "float32", "level": "MUST", "clauses": ["GSPO-RATIO-2"],
     "flags": ["padded-length"], "operation": "ratio", "verdict": "fail", "reason": "off", "url": None, "detail": "",
     "seconds": 0.5, "outputs": {"ratio": {"k": "inf", "limit": 16.0, "reason": "off", "index": [0], "expected": "1",
                                           "got": {"dtype": "float32", "shape": [2], "data": [1.0, "nan"]}}}},
    {"type": "footer", "complete": True, "results": 1, "counts": {"fail": 1}, "verdict": "NOT conforming", "exit_code": 1,
     "seconds": 1.0, "stale": [], "failure": "", "detail": "", "diagnosis": {
         "sentence": "x", "clauses": ["GSPO-RATIO-2"], "mutants": ["a"], "links": ["https://example.org"], "effect": "",
         "confidence": 0.5, "runners_up": [{"mutants": "b", "confidence": 0.1}]}},
]  # fmt: skip


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A record with something changed."""
    lines = changed(draw, RECORD)
    text = "\n".join(json.dumps(line) for line in lines) if isinstance(lines, list) else json.dumps(lines)
    return damaged(draw, text.encode("utf-8", "surrogatepass"))


def test_records(fuzz: Any, folder: Path) -> None:
    path = folder / "x.jsonl"

    def is_record_or_refused(content: bytes) -> None:
        path.write_bytes(content)
        try:
            run = read(path)
        except UsageError as error:
            return refused(error)
        for format in FORMATS:
            render([run], format).encode("utf-8")
        return None

    fuzz(records(), is_record_or_refused, 15)


PART = {"step": 0, "microbatch": 0, "loss": 0.5, "metrics": {"ratio_mean": 1.0}}
TENSORS = {
    "0.logp": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "0.old_logp": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]},
    "0.mask": {"dtype": "BOOL", "shape": [2, 2], "data_offsets": [32, 36]},
    "0.advantages": {"dtype": "F32", "shape": [2], "data_offsets": [36, 44]},
}


@st.composite
def traces(draw: st.DrawFn) -> bytes:
    """A file of a trace with something changed."""
    inner = {"version": 1, "rank": 0, "parts": [PART], "run": {"framework": "torch"}}
    inner = changed(draw, inner) if draw(st.booleans()) else inner
    tensors = changed(draw, TENSORS) if draw(st.booleans()) else TENSORS
    tensors = tensors if isinstance(tensors, dict) else {"0.logp": tensors}
    header = json.dumps({"__metadata__": {"gspo_trace": json.dumps(inner)}} | tensors).encode("utf-8", "surrogatepass")
    header = damaged(draw, header) if draw(st.integers(0, 3)) == 0 else header
    length = draw(st.sampled_from((len(header), len(header), len(header), 0, 2**63, len(header) + 9)))
    return length.to_bytes(8, "little") + header + bytes(range(64))


def test_traces(fuzz: Any, folder: Path) -> None:
    path = folder / "x.safetensors"

    def is_trace_or_refused(content: bytes) -> None:
        path.write_bytes(content)
        try:
            for step in read_trace(folder).steps():
                step.tokens()
        except (UsageError, Broken) as error:
            refused(error)

    fuzz(traces(), is_trace_or_refused, 15)


KEYS = (
    "epsilon", "epsilon_high", "beta", "loss_type", "importance_sampling_level", "scale_rewards", "num_iterations",
    "actor_rollout_ref.actor.clip_ratio", "actor_rollout_ref.actor.policy_loss.loss_mode", "actor.eps_clip", "algorithm.adv_estimator",
    "algorithm.norm_adv_by_std_in_grpo", "pg_clip", "adv_estimator", "rlhf_type", "actor.recompute_logprob", "steps_per_generation",
    "advantage_estimator", "eps_clip", "kl_coef", "trainer.algorithm.policy_loss_type", "generation_batch_size", "delta",
)  # fmt: skip
SETTINGS = st.dictionaries(st.sampled_from(KEYS + WORDS), TREES, max_size=5)
PLAIN = st.dictionaries(st.sampled_from(KEYS), LEAVES, max_size=5)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A dialect, the ending of a file, and its content."""
    kind = draw(st.sampled_from((".yaml", ".json", ".py", ".sh", ".toml")))
    plain = draw(PLAIN)
    if kind in (".yaml", ".json"):
        text = json.dumps(draw(st.one_of(SETTINGS, PLAIN)))
    elif kind == ".py":
        text = f"GRPOConfig({', '.join(f'{key.split(chr(46))[-1]}={value!r}' for key, value in plain.items())})"
    elif kind == ".sh":
        text = "python -m x " + " ".join(f"{key}={value}" for key, value in plain.items())
    else:
        text = "\n".join(f"{key.replace('.', '_')} = {json.dumps(value)}" for key, value in plain.items())
    content = (
        damaged(draw, text.encode("utf-8", "surrogatepass")) if draw(st.booleans()) else text.encode("utf-8", "replace")
    )
    return draw(st.sampled_from(sorted(rooms()))), kind, content


def test_configurations(fuzz: Any, folder: Path) -> None:
    def is_objective_or_refused(case: tuple[str, str, bytes]) -> None:
        name, kind, content = case
        path = folder / f"c{kind}"
        path.write_bytes(content)
        room = rooms()[name]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                configuration = read_configuration([str(path)])
                reading, found = read_settings(room.dialect, configuration.settings, room.default)
            except (UsageError, Inexpressible) as error:
                return refused(error)
            for form in LINT_FORMATS:
                render_lint(reading, found, configuration, form).encode("utf-8")
        return None

    fuzz(configurations(), is_objective_or_refused, 35)


def test_the_suite_can_encode_what_it_asks() -> None:
    assert read_case(decode(encode(CASE))).operation == "ratio"
