"""JSON lines: every message obeys the schema, expected answers stay here, and every fault of a program ends in a verdict."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import gspo_conformance
from gspo_conformance import program, protocol
from gspo_conformance.applicability import case_of
from gspo_conformance.connection import Broken, Outputs, Skipped
from gspo_conformance.formats import OPERATIONS, load_vectors
from gspo_conformance.program import Program
from gspo_conformance.protocol import ProtocolError
from gspo_conformance.run import ERROR, FAIL, PASS, UNSUPPORTED, Run
from gspo_conformance.runner import Options, run_vectors
from gspo_conformance.target import INPUTS, PARAMETERS, Capabilities

from .small import loss_vector, ratio_vector, small_suite
from .speaker import FAULTS, HANDSHAKES

SPEAKER = Path(__file__).with_name("speaker.py")
SCHEMA = json.loads(
    (Path(gspo_conformance.__file__).parent / "schemas/protocol.schema.json").read_text(encoding="utf-8")
)
EVERYTHING = Capabilities.everything()
SUITE = small_suite()


def speaker(mode: str = "right") -> Program:
    return Program(f"speaker {mode}", [sys.executable, "-S", str(SPEAKER), mode], start_limit=20)


def run(mode: str, *, limit: float = 20.0) -> Run:
    return run_vectors(speaker(mode), SUITE, Options(limit=limit))


def valid(kind: str, message: Any) -> bool:
    schema = {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}
    return jsonschema.Draft202012Validator(schema).is_valid(message)


def test_the_schema_is_a_schema_and_lists_the_words_that_the_code_knows() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    properties = SCHEMA["$defs"]["capabilities"]["properties"]
    whole = EVERYTHING.to_dict()
    assert properties.keys() == whole.keys()
    for name in ("operations", "dtypes", "layouts", "metrics", "input_dtypes"):
        assert sorted(properties[name]["items"]["enum"]) == whole[name]


def test_the_names_that_a_program_may_understand_are_those_of_the_vectors() -> None:
    properties = SCHEMA["$defs"]["capabilities"]["properties"]
    parts = [part for vector in load_vectors() for part in vector.inputs.get("parts", [vector.inputs])]
    assert properties["inputs"]["items"]["enum"] == list(INPUTS) == sorted(set().union(*parts))
    used = set().union(*(vector.parameters for vector in load_vectors()))
    assert properties["parameters"]["items"]["enum"] == list(PARAMETERS) == sorted(used)


def test_the_page_names_what_the_vectors_use() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    named = {re.findall("`(.*?)`", row[0])[0]: [set(re.findall("`(.*?)`", cell)) for cell in row[1:]] for row in rows}
    assert list(named) == list(OPERATIONS)
    for vector in load_vectors():
        inputs, parameters, outputs = named[vector.operation]
        used = set().union(*vector.inputs["parts"]) if vector.operation == "step" else set(vector.inputs)
        assert used <= (named["policy_loss"][0] if vector.operation == "step" else inputs), vector.id
        assert set(vector.parameters) | {"normalizer"} == parameters | {"normalizer"}, vector.id
        assert {re.sub(r"\..*", ".*", name) for name in vector.outputs} <= outputs, vector.id


def test_every_word_of_a_parameter_stands_on_the_pages_that_describe_a_question() -> None:
    docs = Path(__file__).parents[2] / "docs"
    pages = ("protocol.md", "spec/relatives.md", "spec/aggregation.md", "spec/penalty.md")
    written = {word for page in pages for word in re.findall("`(.*?)`", (docs / page).read_text(encoding="utf-8"))}
    assert {word for vector in load_vectors() for word in words_of(vector.parameters)} <= written


def words_of(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set(value) | words_of(list(value.values()))
    if isinstance(value, list):
        return set().union(*map(words_of, value))
    return {value} if isinstance(value, str) else set()


def test_what_the_suite_sends_obeys_the_schema_and_survives_the_way() -> None:
    assert valid("start", protocol.start_message())
    assert valid("stop", protocol.stop_message())
    for vector in [*SUITE, loss_vector("numerics/bf16", input_dtype="bfloat16")]:
        for dtype in vector.dtype:
            case = case_of(vector, dtype, EVERYTHING)
            case.inputs["logp" if "logp" in case.inputs else "rewards"].flat[:3] = [np.nan, np.inf, -np.inf]
            message = protocol.decode(protocol.encode(protocol.run_message(1, case)))
            assert valid("run", message)
            back = protocol.read_case(message)
            assert (back.id, back.operation, back.outputs, back.dtype) == (case.id, case.operation, case.outputs, dtype)
            assert back.parameters == case.parameters
            for name, array in case.inputs.items():
                assert back.inputs[name].dtype == array.dtype
                assert back.inputs[name].tobytes() == array.tobytes() or np.isnan(array).any()
                np.testing.assert_array_equal(back.inputs[name], array)


def test_a_step_travels_as_a_list_of_parts() -> None:
    case = case_of(loss_vector("distribution/parts"), "float32", EVERYTHING)
    parts = {"parts": [dict(case.inputs), dict(case.inputs)]}
    message = protocol.run_message(1, type(case)("step", {}, parts))
    assert valid("run", message)
    back = protocol.read_case(message)
    np.testing.assert_array_equal(back.inputs["parts"][1]["logp"], case.inputs["logp"])


def test_no_question_has_room_for_an_answer() -> None:
    vector = loss_vector("gradient/hidden")
    text = protocol.encode(protocol.run_message(1, case_of(vector, "float64", EVERYTHING))).decode()
    gradient = vector.raw["expected"]["gradient"]["value"]
    answers = [vector.raw["expected"]["loss"]["value"], *(number for row in gradient for number in row)]
    assert not [number for number in answers if number != "0.0" and number in text]
    assert "expected" not in text
    assert "scale" not in text


HELLO = {"version": 1, "implementation": {"name": "x"}, "capabilities": {}}
GOOD_REPLIES = [
    {"seq": 1, "outputs": {"loss": 1}},
    {"seq": 1, "outputs": {"loss": "nan", "gradient": [[1, "inf"], [0.5, "-inf"]]}},
    {"seq": 1, "outputs": {"keep": [True, False], "gradient": {"shape": [0, 3], "data": []}}},
    {"seq": 1, "outputs": {"loss": {"dtype": "float32", "shape": [], "data": [1.5]}}},
    {"seq": 1, "outputs": {}},
    {"seq": 1, "skipped": {"reason": "no"}},
    {"seq": 1, "skipped": {"reason": "no", "url": "https://example.org"}},
    {"seq": 1, "skipped": {"reason": "no", "url": None}},
    {"seq": 1, "error": {"message": "no"}},
    {"seq": 1, "error": {"message": "no", "traceback": "line 1"}},
]
BAD_REPLIES = [
    {"seq": 1},
    {"outputs": {}},
    {"seq": "1", "outputs": {}},
    {"seq": True, "outputs": {}},
    {"seq": 1, "outputs": []},
    {"seq": 1, "outputs": {"loss": "small"}},
    {"seq": 1, "outputs": {"loss": None}},
    {"seq": 1, "outputs": {"loss": [1, None]}},
    {"seq": 1, "outputs": {"loss": {"shape": [1], "data": [[1]]}}},
    {"seq": 1, "outputs": {"loss": {"shape": [-1], "data": []}}},
    {"seq": 1, "outputs": {"loss": {"data": [1]}}},
    {"seq": 1, "outputs": {}, "note": "extra"},
    {"seq": 1, "outputs": {}, "error": {"message": "both"}},
    {"seq": 1, "skipped": {}},
    {"seq": 1, "skipped": {"reason": "no", "link": "x"}},
    {"seq": 1, "skipped": "no"},
    {"seq": 1, "error": {"message": 3}},
]
BAD_HELLOS = [
    {},
    HELLO | {"version": 2},
    HELLO | {"implementation": {}},
    HELLO | {"implementation": {"name": 3}},
    HELLO | {"implementation": "x"},
    HELLO | {"capabilities": None},
    HELLO | {"capabilities": {"gradients": True}},
    HELLO | {"capabilities": {"gradient": "yes"}},
    HELLO | {"capabilities": {"operations": "policy_loss"}},
    HELLO | {"capabilities": {"dtypes": ["float16"]}},
    HELLO | {"capabilities": {"objectives": ["gspo"]}},
    HELLO | {"capabilities": {"inputs": [3]}},
    HELLO | {"capabilities": {"inputs": ["rewards", "grups"]}},
    HELLO | {"capabilities": {"parameters": ["gama"]}},
    HELLO | {"note": "extra"},
]


@pytest.mark.parametrize("message", GOOD_REPLIES, ids=json.dumps)
def test_the_checks_accept_what_the_schema_accepts(message: dict[str, Any]) -> None:
    assert valid("reply", message)
    assert isinstance(protocol.read_reply(protocol.decode(protocol.encode(message))), (Outputs, Skipped, Broken))


@pytest.mark.parametrize("message", BAD_REPLIES, ids=json.dumps)
def test_the_checks_refuse_what_the_schema_refuses(message: dict[str, Any]) -> None:
    assert not valid("reply", message)
    with pytest.raises(ProtocolError):
        protocol.read_reply(message)


@pytest.mark.parametrize("message", BAD_HELLOS, ids=json.dumps)
def test_a_handshake_that_the_schema_refuses_is_refused(message: dict[str, Any]) -> None:
    assert not valid("hello", message)
    with pytest.raises(ProtocolError):
        protocol.read_hello(message)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 100_000, b'{"a": Infinity}', b"null", b"{} {}"])
def test_a_line_that_is_not_one_json_object_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(line)


@pytest.mark.parametrize("outputs", [{"loss": [[1], [1, 2]]}, {"loss": {"shape": [3], "data": [1]}}, {"loss": 10**400}])
def test_numbers_that_make_no_array_are_refused(outputs: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="loss"):
        protocol.read_reply({"seq": 1, "outputs": outputs})


def test_the_dtype_of_an_answer_travels_with_it() -> None:
    message = protocol.reply_message(1, Outputs({"loss": np.float16(1), "gradient": np.ones(2, int), "extra": None}))
    reply = protocol.read_reply(message)
    assert isinstance(reply, Outputs)
    assert {name: value.dtype for name, value in reply.values.items()} == {"loss": "float16", "gradient": "int64"}


def test_a_program_that_is_right_passes_and_is_not_asked_what_it_does_not_offer() -> None:
    found = run("right")
    assert found.implementation == {"name": "speaker", "language": "Python"}
    verdicts = {result.key: result.verdict for result in found.results}
    assert verdicts.pop("sampling/keep[float32]") == verdicts.pop("sampling/keep[float64]") == UNSUPPORTED
    assert set(verdicts.values()) == {PASS}
    assert found.exit_code == 0


VERDICTS = {
    "crash": (3, ERROR, "killed by SIGABRT"),
    "garbage": (3, ERROR, "garbage on stdout: not a line of JSON"),
    "bare-nan": (3, ERROR, "NaN is not JSON"),
    "not-an-object": (3, ERROR, "expected a JSON object"),
    "half-a-line": (3, ERROR, "garbage on stdout: not a line of JSON"),
    "wrong-seq": (3, ERROR, "the reply has seq 2, the question had 1"),
    "malformed": (3, ERROR, "malformed reply: outputs.loss: expected numbers"),
    "unequal-rows": (3, ERROR, "rows of unequal length"),
    "error": (3, ERROR, "division by zero"),
    "lies": (1, FAIL, "gradient: missing from the answer, which has loss"),
    "nan": (1, FAIL, "got nan"),
    "too-few": (1, FAIL, "expected shape (3, 5), got (2, 5)"),
    "echo": (1, FAIL, "the input `logp` came back unchanged"),
    "null": (1, FAIL, "missing from the answer, which has nothing"),
}


@pytest.mark.parametrize("mode", VERDICTS)
def test_a_fault_ends_in_a_verdict_for_every_vector(mode: str) -> None:
    code, verdict, reason = VERDICTS[mode]
    found = run(mode)
    assert found.complete
    assert len(found.results) == 12
    asked = [result for result in found.results if result.verdict != UNSUPPORTED]
    assert reason in asked[0].reason
    assert asked[0].verdict == verdict
    assert not [result for result in asked if result.verdict == PASS and result.operation == "policy_loss"]
    assert found.exit_code == code


def test_a_program_that_hangs_is_given_up_and_every_vector_has_its_verdict() -> None:
    found = run("hang", limit=0.2)
    reasons = [result.reason for result in found.results if result.verdict == ERROR]
    assert reasons[:3] == ["no answer within 0.2 s"] * 3
    assert set(reasons[3:]) == {"not asked: the target broke down 3 times in a row, at last: no answer within 0.2 s"}
    assert len(reasons) == 10
    assert found.exit_code == 3
    assert found.seconds < 10


def test_after_a_crash_the_program_is_started_again_and_nothing_else_is_lost() -> None:
    found = run("crash-on-float64")
    verdicts = {(result.dtype, result.verdict) for result in found.results if result.verdict != UNSUPPORTED}
    assert verdicts == {("float32", PASS), ("float64", ERROR)}
    assert all(r.reason == "the program ended with exit code 7" for r in found.results if r.verdict == ERROR)
    assert found.exit_code == 1


def test_what_a_crashing_program_wrote_to_stderr_is_kept() -> None:
    result = next(result for result in run("crash").results if result.verdict == ERROR)
    assert "about to die" in result.detail


def test_a_line_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MAX_LINE", 2**16)
    result = next(result for result in run("oversized").results if result.verdict == ERROR)
    assert result.reason == "the program wrote a line of more than 65536 bytes"


def test_a_line_that_nobody_asked_for_is_held_against_the_program() -> None:
    reasons = {result.reason for result in run("two-lines").results if result.verdict == ERROR}
    asked_early = "the reply has seq None, the question had"
    assert reasons
    assert all("spoke without being asked" in reason or asked_early in reason for reason in reasons)


HANDSHAKE_ERRORS = {
    "banner": "not a line of JSON",
    "next-version": "this suite speaks 1, the program 2",
    "misspelt-capability": "unknown 'operation'; did you mean 'operations'?",
    "unknown-operation": "unknown 'policy_los'; did you mean 'policy_loss'?",
    "nameless": "implementation.name is missing",
    "refusal": "no GPU here",
    "silent": "stderr: nothing to say",
}


@pytest.mark.parametrize("mode", HANDSHAKE_ERRORS)
def test_a_handshake_that_fails_is_the_harness_failing(mode: str) -> None:
    found = run(mode)
    assert HANDSHAKE_ERRORS[mode] in found.failure
    assert found.exit_code == 3


def test_a_program_that_is_not_there_is_named() -> None:
    found = run_vectors(Program("ghost", ["/nonexistent/ghost"]), SUITE)
    assert found.failure == "program '/nonexistent/ghost' does not start: No such file or directory"


def test_every_fault_is_looked_at() -> None:
    elsewhere = {"hang", "crash-on-float64", "oversized", "two-lines"}
    assert VERDICTS.keys() | elsewhere == FAULTS.keys()
    assert HANDSHAKE_ERRORS.keys() == HANDSHAKES.keys()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "subject.py"


def served(module: Path, text: str) -> Run:
    module.write_text(text, encoding="utf-8")
    spec = "subject:target"
    words = [sys.executable, "-m", "gspo_conformance.serve", spec]
    return run_vectors(Program(spec, words), [ratio_vector("ratio/sequence")])


TARGET = """
from gspo_conformance.target import Capabilities, FunctionTarget, Skip
print("loading")
def answer(case):
    print("running", case.id)
    {body}
target = FunctionTarget("mine", answer, Capabilities.everything(), {{"mine": "1.0"}})
"""
BODIES = {
    "import numpy as np; i = case.inputs; d = np.where(i['mask'], i['logp'] - i['old_logp'], 0);"
    " return {'ratio': np.exp(d.sum(1) / i['mask'].sum(1))}": (PASS, ""),
    "raise Skip('not today', 'https://example.org')": ("skipped", "not today"),
    "return {}['missing']": (ERROR, "KeyError: 'missing'"),
    "import os; os._exit(9)": (ERROR, "the program ended with exit code 9"),
    "return 3.0": (ERROR, "the answer is not a mapping"),
    "return {'ratio': 'large'}": (ERROR, "the answer is not a mapping of names to arrays of numbers"),
    "import numpy as np; return {'ratio': np.ones(2, np.float16)}": (FAIL, "expected float32, got float16"),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_python_target_is_served_from_a_process_of_its_own(module: Path, body: str) -> None:
    verdict, reason = BODIES[body]
    found = served(module, TARGET.format(body=body))
    assert found.implementation == {"name": "mine", "mine": "1.0"}
    assert found.results[0].verdict == verdict
    assert reason in found.results[0].reason


def test_a_python_target_that_does_not_load_says_why(module: Path) -> None:
    found = served(module, "import nonexistent_package")
    assert found.failure == "target 'subject:target': subject imports 'nonexistent_package', which is not installed"
    assert found.exit_code == 3


@pytest.mark.parametrize("dtype", ["loat32", "O", "S2000000000", "float128", ""])
def test_a_question_has_one_of_four_dtypes(dtype: str) -> None:
    message = protocol.run_message(1, case_of(SUITE[0], "float32", EVERYTHING))
    next(iter(message["case"]["inputs"].values()))["dtype"] = dtype
    with pytest.raises(ProtocolError, match="dtype: expected one of bool, int64, float32, float64"):
        protocol.read_case(message)


def test_a_part_of_a_question_is_an_object() -> None:
    message = protocol.run_message(1, case_of(SUITE[0], "float32", EVERYTHING))
    message["case"]["inputs"]["parts"] = [None]
    with pytest.raises(ProtocolError, match=r"case\.inputs\.parts\[0\]: expected an object, got None"):
        protocol.read_case(message)
