"""SHA-256 of every file in `vectors/`: a copy that was edited, truncated or half updated is found before it judges anyone.

`vectors/MANIFEST` has one line per file, as `sha256sum` writes and checks them.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from .formats import VECTORS

MANIFEST = "MANIFEST"


def manifest_text(files: dict[str, bytes]) -> str:
    """`hash  path`, by path."""
    return "".join(f"{sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))


def verify_manifest(root: Path = VECTORS) -> list[str]:
    """What differs between the files and the manifest, one sentence each; empty where all is well."""
    listed = read_manifest(root)
    found = {path.relative_to(root).as_posix() for path in root.glob("*/*") if path.suffix in (".json", ".safetensors")}
    missing = [f"{name}: in {MANIFEST}, but not there" for name in sorted(listed.keys() - found)]
    strange = [f"{name}: there, but not in {MANIFEST}" for name in sorted(found - listed.keys())]
    changed = [
        f"{name}: its SHA-256 is not the one in {MANIFEST}"
        for name in sorted(found & listed.keys())
        if sha256((root / name).read_bytes()).hexdigest() != listed[name]
    ]
    return missing + strange + changed


def read_manifest(root: Path = VECTORS) -> dict[str, str]:
    """The SHA-256 of each file by its path; empty where there is no manifest."""
    path = root / MANIFEST
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
