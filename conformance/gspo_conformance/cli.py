"""`gspo`: one small file per command in `commands/`, imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "check": ("check", "run the conformance suite against targets"),
    "explain": ("explain", "a clause, a vector, a flag or a mutant, in words and numbers"),
    "vectors": ("vectors", "list, show, lint or regenerate the golden vectors"),
    "mutants": ("mutants", "the suite's own score: who kills which wrong implementation"),
    "noise": ("noise", "how much of a clip fraction is noise: predicted for given lengths"),
    "audit": ("audit", "recompute a real run from what it recorded"),
    "lint": ("lint", "what a trainer's configuration really optimises"),
    "trainers": ("trainers", "the trainers whose real code can be checked, and their environments"),
    "report": ("report", "merge recorded runs into one report"),
    "new-target": ("new_target", "write the skeleton of an adapter for your implementation"),
}
_USAGE, _HARNESS = 2, 3
# What the suite imports and the core alone does not bring.
_NEEDED = ("jsonschema", "mpmath", "numpy", "yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 as expected, 1 non-conforming, 2 usage, 3 the harness failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = " ".join(["gspo", *words[:1]]) if words and words[0] in COMMANDS else "gspo"
    _print_anything()
    try:
        try:
            return _main(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        code, said = 141, ""
    except ModuleNotFoundError as error:
        code, said = _HARNESS, _missing(error)
    except OSError as error:
        code, said = _HARNESS, ": ".join(str(word) for word in (error.filename, error.strerror or error) if word)
    except KeyboardInterrupt:
        code, said = 130, "interrupted"
    except Exception:
        code, said = _HARNESS, _defect()
    _end(f"{name}: {said}" if said else "")
    return code


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else _USAGE
    if words[0] == "--version":
        return _version()
    if words[0] not in COMMANDS:
        from .words import choices

        print(f"gspo: {choices(words[0], COMMANDS, 'command')}", file=sys.stderr)
        return _USAGE
    return _run(words[0], words[1:])


def _run(name: str, words: list[str]) -> int:
    from .words import HarnessError, UsageError, printable

    file, summary = COMMANDS[name]
    command = import_module(f".commands.{file}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"gspo {name}",
        description=command.__doc__ or summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        command.add_arguments(parser)
        parse = parser.parse_intermixed_args if getattr(command, "INTERMIXED", False) else parser.parse_args
        return command.run(parse(words))
    except UsageError as error:
        print(f"gspo {name}: {printable(str(error))}", file=sys.stderr)
        return _USAGE
    except HarnessError as error:
        print(f"gspo {name}: {printable(str(error))}", file=sys.stderr)
        return _HARNESS


def _missing(error: ModuleNotFoundError) -> str:
    """What is not installed, where the suite needs it and the core alone was asked for."""
    module = (error.name or "").partition(".")[0]
    return (
        f"needs {module}, which is not installed: pip install 'gspo[conformance]'" if module in _NEEDED else _defect()
    )


def _defect() -> str:
    from traceback import format_exc

    return f"a defect of gspo itself, which says nothing about what was asked\n{format_exc()}"


def _print_anything() -> None:
    """A terminal that lacks a character shows its number; none ends a command, whatever the locale, nor does one that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end(said: str) -> None:
    """Last words; what a stdout that takes no more still holds would end Python with an exit code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    with suppress(OSError):
        print(said, end="\n" * bool(said), file=sys.stderr)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  gspo {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "gspo: is this implementation of Group Sequence Policy Optimization right, and if not, what does it compute?",
            "",
            *lines,
            "",
            "Start with `gspo check numpy`, then `gspo check your_package.module:target`.",
            "`gspo COMMAND --help` says more about each.",
        ]
    )


def _version() -> int:
    from importlib.metadata import version

    print(f"gspo {version('gspo')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
