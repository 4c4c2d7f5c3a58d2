"""Hard limits on files, functions, parameters, settings and options: mechanical, from the first day.

Parameters are keyword-only after the second in every function that has more than four of them, and in every
public name of the index whatever it has. A private or nested function may be called as it likes.
"""

import ast
from collections import Counter

import mechscope
from guards.tree import PACKAGE, decorator_names, functions, listing, package_sources, python_sources

FILE_LINES = 600
FUNCTION_LINES = 80
PARAMETERS = 7
POSITIONAL = 2
FEW_PARAMETERS = 4
DATACLASS_FIELDS = 12
COMMAND_OPTIONS = 12
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}

# "path: what" as the guard prints it, without the numbers -> the number of it allowed today, and why.
# May only shrink: an entry that allows more than there is fails the test below.
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "circuits/evaluation.py: evaluate_circuits positional": (
        1,
        "the public contract has (model, circuits, split) by position",
    ),
    "features/building.py: build positional": (
        1,
        "the public contract in DESIGN has (model, dictionary, corpus) by position",
    ),
    "graphs/build.py: attribution_graph positional": (
        1,
        "the public contract in DESIGN has (model, transcoders, prompt) by position",
    ),
}


def size_problems(path: str, source: str) -> list[tuple[str, str]]:
    """(what, detail) of each limit that the file breaks."""
    tree = ast.parse(source)
    found: list[tuple[str, str]] = []
    n_lines = source.count("\n")
    if n_lines > FILE_LINES:
        found.append(("file lines", f"{n_lines} lines, the limit is {FILE_LINES}"))
    for function in functions(tree):
        found += [(f"{function.name} {what}", detail) for what, detail in function_problems(function)]
    nested = nested_functions(tree)
    public = public_functions(path, tree)
    for function in functions(tree):
        is_ours = function not in nested and (
            function.name == "__init__" or not function.name.startswith("_")
        )
        problems = signature_problems(function, most=0 if function in public else FEW_PARAMETERS)
        found += [
            (f"{function.name} {what}", text) for what, text in problems if is_ours or what != "positional"
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "dataclass" in "".join(decorator_names(node)):
            n_fields = sum(
                isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item) for item in node.body
            )
            if n_fields > DATACLASS_FIELDS:
                found.append((f"{node.name} fields", f"{n_fields} fields, the limit is {DATACLASS_FIELDS}"))
    return [(f"{path}: {what}", detail) for what, detail in found]


def nested_functions(tree: ast.AST) -> set[ast.AST]:
    """Functions defined inside functions; their signatures are often somebody else's (hooks, callbacks)."""
    return {inner for outer in functions(tree) for inner in functions(outer) if inner is not outer}


def function_problems(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, str]]:
    n_lines = (function.end_lineno or function.lineno) - function.lineno + 1
    too_long = n_lines > FUNCTION_LINES
    return [("lines", f"{n_lines} lines, the limit is {FUNCTION_LINES}")] if too_long else []


def public_functions(path: str, tree: ast.Module) -> set[ast.AST]:
    """Functions, and methods of classes, that the index offers from this file."""
    module = "mechscope." + path.removesuffix(".py").replace("/", ".")
    names = {place.partition(":")[2] for place in mechscope._INDEX.values() if place.startswith(f"{module}:")}
    offered = [node for node in tree.body if getattr(node, "name", "") in names]
    methods = [item for node in offered if isinstance(node, ast.ClassDef) for item in node.body]
    return {*offered, *methods}


def signature_problems(
    function: ast.FunctionDef | ast.AsyncFunctionDef, *, most: int = FEW_PARAMETERS
) -> list[tuple[str, str]]:
    """Too many parameters; more than two by position where there are more than `most`; commands: options."""
    positional = [item.arg for item in [*function.args.posonlyargs, *function.args.args]]
    if positional[:1] in (["self"], ["cls"]):
        positional = positional[1:]
    n_parameters = len(positional) + len(function.args.kwonlyargs)
    if any(name.endswith(".command") for name in decorator_names(function)):
        too_many = n_parameters > COMMAND_OPTIONS
        return [("options", f"{n_parameters} options, the limit is {COMMAND_OPTIONS}")] if too_many else []
    if is_called_by_position(function.name, positional):
        return []
    found: list[tuple[str, str]] = []
    if n_parameters > PARAMETERS:
        found.append(("parameters", f"{n_parameters} parameters, the limit is {PARAMETERS}"))
    if n_parameters > most and len(positional) > POSITIONAL:
        found.append(("positional", f"{len(positional)} by position; keyword-only after the second"))
    return found


def is_called_by_position(name: str, positional: list[str]) -> bool:
    """True where somebody else fixes the call: torch for `forward`, transformers for attention functions."""
    return name == "forward" or positional[:2] == ["module", "query"]


def test_no_file_function_signature_or_settings_class_of_the_package_is_oversized() -> None:
    allowed = Counter({key: number for key, (number, _) in EXCEPTIONS.items()})
    problems: list[str] = []
    for path, source in package_sources():
        for key, detail in size_problems(path, source):
            allowed[key] -= 1
            if allowed[key] < 0:
                problems.append(f"{key}: {detail}")
    assert not problems, listing(problems)
    assert not +allowed, f"these exceptions are no longer needed, delete them: {dict(+allowed)}"


def test_no_file_of_tests_or_benchmarks_is_oversized() -> None:
    long = [f"{path}: {n}" for path, source in python_sources() if (n := source.count("\n")) > FILE_LINES]
    assert not long, listing(long)


def test_no_file_or_folder_is_named_for_having_no_home() -> None:
    homeless = [path for path in PACKAGE.rglob("*") if path.stem in FORBIDDEN_NAMES]
    assert not homeless, "a domain word is missing: find it"


def test_the_guard_sees_each_kind_of_excess() -> None:
    def found(source: str) -> str:
        return " ".join(key for key, _ in size_problems("engine/plan.py", source))

    assert "file lines" in found("x = 1\n" * (FILE_LINES + 1))
    assert "f lines" in found("def f():\n" + "    x = 1\n" * FUNCTION_LINES)
    assert "f parameters" in found("def f(a, b, *, c, d, e, g, h, i): ...")
    assert "f parameters" in found("def outer():\n    def f(a, b, *, c, d, e, g, h, i): ...")
    assert "f positional" in found("def f(a, b, c, *, d, e): ...")
    assert "f positional" in found("class C:\n    def f(self, a, b, c, d, e): ...")
    assert "__init__ positional" in found("class C:\n    def __init__(self, a, b, c, d, e): ...")
    fields = "\n".join(f"    f{index}: int" for index in range(DATACLASS_FIELDS + 1))
    assert "f positional" in found("def f(module, mask, query, key, value): ...")
    assert "C fields" in found(f"@dataclass(frozen=True)\nclass C:\n{fields}")
    options = ", ".join(f"o{index}" for index in range(COMMAND_OPTIONS + 1))
    assert "show options" in found(f"@app.command()\ndef show({options}): ...")


def test_a_name_of_the_index_is_keyword_only_after_the_second_whatever_it_has() -> None:
    parse = "class Site:\n    def parse(self, name, layer, model): ..."
    assert size_problems("vocabulary/sites.py", parse)
    assert not size_problems("vocabulary/where.py", parse)


def test_the_guard_lets_ordinary_code_pass() -> None:
    assert not size_problems(
        "engine/plan.py", "def f(a, b, *, c, d, e, g, h): ...\ndef _g(a, b, c, d, e): ..."
    )
    assert not size_problems("engine/plan.py", "def blend(value, donor, where): ...")
    assert not size_problems("engine/plan.py", "class C:\n    def f(self, a, b, *, c): ...")
    assert not size_problems("models/native/model.py", "class M:\n    def forward(self, x, mask, cache): ...")
    assert not size_problems("models/attention.py", "def attend(module, query, key, value): ...")
    assert not size_problems("cli/main.py", "@app.command('show')\ndef show(a, b, c, d, e, f, g, h): ...")
