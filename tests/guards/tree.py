"""What the guards read: the package's sources and the repository's tracked files, as (path, text)."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mechscope"


def package_sources() -> Iterator[tuple[str, str]]:
    """(path relative to the package, source) of every Python file of mechscope."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        ast.parse(source, filename=str(path))  # so that a syntax error names its file
        yield path.relative_to(PACKAGE).as_posix(), source


def python_sources() -> Iterator[tuple[str, str]]:
    """(path relative to the repository, source) of every Python file that git does not ignore."""
    for path in repository_files():
        if path.suffix == ".py":
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def repository_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; of an unpacked archive, every file."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        names = listing.stdout.decode().split("\0")
        return sorted(path for name in names if name and (path := ROOT / name).is_file())
    hidden = {".venv", ".git", "_build", "__pycache__"}
    return sorted(path for path in ROOT.rglob("*") if path.is_file() and not hidden & set(path.parts))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, however deep."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def decorator_names(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[str]:
    """Decorators as written, without their arguments: "dataclass", "app.command"."""
    bare = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return [ast.unparse(item) for item in bare]


def listing(problems: list[str]) -> str:
    """All problems at once, one a line, for the assertion's message."""
    return "\n".join(["", *problems])
