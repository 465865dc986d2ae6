"""What people downstream write down: every public name and signature is that of signatures.txt, changed on purpose alone."""

from __future__ import annotations

import difflib

import gspo_core as gspo

from .signatures import FILE, signatures


def test_every_public_name_and_signature_is_the_one_that_is_pinned() -> None:
    pinned, found = FILE.read_text(encoding="utf-8").splitlines(), signatures().splitlines()
    changed = "\n".join(difflib.unified_diff(pinned, found, "signatures.txt", "gspo_core", lineterm="", n=0))
    assert not changed, f"{changed}\nOn purpose? python -m gspo_core.tests.signatures"


def test_every_public_name_is_in_it() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    tops = [line.removeprefix("class ").partition("(")[0] for line in lines if not line.startswith(" ")]
    assert tops == gspo.__all__
    assert len(lines) > 100
