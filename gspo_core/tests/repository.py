"""Where the checkout is, and what a Python file in it imports."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".cfg", ".css", ".js", ".json", ".md", ".mjs", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}
VENDORED = ROOT / "docs" / "assets" / "katex"


def modules(package: str) -> list[Path]:
    """The Python files of the package in folder `package`, without its tests."""
    folder = ROOT / package
    return [path for path in sorted(folder.rglob("*.py")) if "tests" not in path.relative_to(folder).parts]


def imports(path: Path) -> set[str]:
    """Every absolute module name that `path` imports, at any depth; a relative import is resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{_base(path, node)}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    """The top-level names among `imports(path)`."""
    return {name.split(".")[0] for name in imports(path)}


def _base(path: Path, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = path.parent
    for _ in range(node.level - 1):
        package = package.parent
    names = [package.name]
    while (package.parent / "__init__.py").exists():
        package = package.parent
        names.insert(0, package.name)
    return ".".join([*names, *([node.module] if node.module else [])])


def committed() -> list[Path]:
    """The files git tracks, or every file of an unpacked sdist."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    hidden = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in hidden if not {".venv", "site", "dist", "__pycache__"} & set(path.relative_to(ROOT).parts)]
