"""requirements.lock from constraints.txt: every pinned version with the SHA-256 of each of its files, as pip's --require-hashes reads.

    python .ci/lock.py            # asks the Python Package Index, or $PIP_INDEX_URL
    python .ci/lock.py --check    # asks nobody: is every pin of constraints.txt in the lock, with a hash, and nothing else?

PyTorch publishes its CPU builds beside the index, so their hashes come from `--wheel FILE`, a wheel at hand.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import urllib.request
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, PINS = ROOT / "requirements.lock", ROOT / "constraints.txt"
HEAD = """# Exactly the versions that are tested, with the SHA-256 of every file of each. Regenerate: make lock
# pip install --require-hashes --no-deps -r requirements.lock
"""


def pins() -> dict[str, str]:
    """The version of each pinned package."""
    lines = [line.split("#")[0].strip() for line in PINS.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line)


def hashes(name: str, version: str) -> list[str]:
    """The SHA-256 of each file that the index has of a version."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    address = f"{index}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": "text/html"}), timeout=60) as answer:
        page = answer.read().decode()
    links = re.findall(r"<a\s[^>]*#sha256=([0-9a-f]{64})[^>]*>\s*([^<\s]+)\s*</a>", page)
    return sorted({digest for digest, file in links if _version(file, name) == version})


def _version(file: str, name: str) -> str:
    """The version in the name of a wheel or an sdist."""
    stem = re.sub(r"(-[^-]+){2,3}\.whl$|\.tar\.gz$|\.zip$", "", file)
    match = re.match(rf"{re.sub(r'[-_.]+', '[-_.]+', name)}-([^-]+)", stem, re.IGNORECASE)
    return match[1] if match else ""


def locked(wheels: list[Path]) -> str:
    """The text of the lock."""
    lines = [HEAD]
    for name, version in pins().items():
        found = hashes(name, version)
        found += [sha256(path.read_bytes()).hexdigest() for path in wheels if path.name.startswith(f"{name}-{version}")]
        if not found:
            sys.exit(f"{name}=={version}: the index has no file of it")
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{one}" for one in found)]) + "\n")
    return "".join(lines)


def missing() -> list[str]:
    """What constraints.txt and the lock do not agree on."""
    text = LOCK.read_text(encoding="utf-8")
    found = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, flags=re.MULTILINE))
    return [f"{name}: {pins().get(name)} pinned, {found.get(name)} locked" for name in sorted(pins().keys() | found)
            if pins().get(name) != found.get(name)]  # fmt: skip


def main() -> int:
    """Writes the lock, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, ask nobody")
    parser.add_argument("--wheel", action="append", type=Path, default=[], help="a file that the index does not have")
    options = parser.parse_args()
    if not options.check:
        LOCK.write_text(locked(options.wheel), encoding="utf-8")
    wrong = missing()
    sys.stderr.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
