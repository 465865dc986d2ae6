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
    changed = [_changed(root / name, name, listed[name]) for name in sorted(found & listed.keys())]
    return missing + strange + [told for told in changed if told]


def _changed(path: Path, name: str, digest: str) -> str:
    """How the file differs; empty where it does not."""
    if path.is_symlink() or not path.is_file():
        return f"{name}: expected a file, got something else"
    content = path.read_bytes()
    if sha256(content).hexdigest() == digest:
        return ""
    if sha256(content.replace(b"\r\n", b"\n")).hexdigest() == digest:
        return f"{name}: its lines end in CRLF, as git writes them with core.autocrlf; {MANIFEST} is of those that end in LF"
    return f"{name}: its SHA-256 is not the one in {MANIFEST}"


def read_manifest(root: Path = VECTORS) -> dict[str, str]:
    """The SHA-256 of each file by its path; empty where there is no manifest."""
    path = root / MANIFEST
    lines = path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
