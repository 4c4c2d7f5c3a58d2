"""A folder imports only from floors below its own; siblings on one floor do not know each other."""

import ast

from guards.tree import listing, package_sources

FLOORS = {
    "vocabulary": 0,
    "records": 1,
    "figures": 1,
    "data": 1.5,  # stands on records, see docs/decisions/0008; other folders of floor 1 do not know each other
    "models": 2,
    "interventions": 3,
    "engine": 4,
    "specimens": 5,
    "lenses": 5,
    "dictionaries": 5,
    "behaviors": 6,
    "patching": 7,
    "attribution": 7,
    "probes": 7,
    "features": 7,
    "superposition": 7,
    "vision": 7,
    "directions": 8,
    "circuits": 8,
    "graphs": 8,
    "editing": 9,
    "claims": 10,
    "investigations": 11,
    "workspace": 11,
    "cli": 12,
    "web": 12,
    "serving": 12,
}

# (file, folder it imports) -> why. May only shrink.
JUSTIFIED: dict[tuple[str, str], str] = {}


def floor_problems(path: str, source: str) -> list[str]:
    """Imports of the file `path` ("engine/plan.py") that go up, sideways, are relative or name the index."""
    home = path.split("/")[0] if "/" in path else ""
    if home and home not in FLOORS:
        return [f"{path}: the folder {home!r} has no floor; DESIGN gives each folder one"]
    return [
        f"{path}:{line}: {problem}"
        for line, module in imported_modules(source)
        if (problem := import_problem(home, module)) and (path, top_folder(module)) not in JUSTIFIED
    ]


def imported_modules(source: str) -> list[tuple[int, str]]:
    """(line, dotted module) of each import, those under TYPE_CHECKING and inside functions too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "." * node.level + (node.module or "")))
        elif isinstance(node, ast.ImportFrom) and node.module == "mechscope":
            found += [(node.lineno, f"mechscope.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
        elif is_dynamic_import(node):
            found.append((node.lineno, node.args[0].value))  # type: ignore[attr-defined]
    return found


def is_dynamic_import(node: ast.AST) -> bool:
    """True for `importlib.import_module("literal")`."""
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("import_module")
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
    )


def top_folder(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def import_problem(home: str, module: str) -> str:
    """Why a file of the folder `home` may not import `module`; "" if it may. The index (home "") sees all."""
    if module.startswith("."):
        return "relative import; write the full name"
    if module.split(".")[0] != "mechscope" or not home:
        return ""
    folder = top_folder(module)
    if folder in {home, "__version__"}:
        return ""
    if folder not in FLOORS:
        return f"imports {module!r}; inside the package import from the floor's own module, not the index"
    if FLOORS[folder] >= FLOORS[home]:
        return f"{home} (floor {FLOORS[home]}) imports {folder} (floor {FLOORS[folder]})"
    return ""


def test_every_folder_imports_only_from_floors_below() -> None:
    problems = [problem for path, source in package_sources() for problem in floor_problems(path, source)]
    assert not problems, listing(problems)


def test_no_exception_outlives_its_reason() -> None:
    sources = dict(package_sources())
    stale = [
        key
        for key in JUSTIFIED
        if key[1] not in {top_folder(module) for _, module in imported_modules(sources.get(key[0], ""))}
    ]
    assert not stale


def test_the_guard_sees_imports_that_go_up_or_sideways() -> None:
    assert floor_problems("models/model.py", "from mechscope.engine import plan")
    assert floor_problems("records/record.py", "import mechscope.figures.heatmap")
    assert floor_problems("models/model.py", "def f():\n    from mechscope.claims import Claim")
    assert floor_problems("models/model.py", "if TYPE_CHECKING:\n    from mechscope.engine.plan import Plan")
    assert floor_problems("models/model.py", "import importlib\nimportlib.import_module('mechscope.engine')")
    assert floor_problems("models/model.py", "from .adapters import gpt2")
    assert floor_problems("claims/claim.py", "import mechscope as ms")
    assert floor_problems("claims/claim.py", "from mechscope import load")
    assert floor_problems("helpers/tools.py", "")


def test_the_guard_lets_imports_go_down() -> None:
    assert not floor_problems("engine/plan.py", "from mechscope.models.model import Model\nimport torch")
    assert not floor_problems("engine/plan.py", "from mechscope.engine.rows import Row")
    assert not floor_problems("records/record.py", "from mechscope import __version__")
    assert not floor_problems("__init__.py", "from mechscope.claims import Claim")
