"""Who may import whom: lower never imports higher, and plug-ins know nothing of each other."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import autoresearch

PACKAGE = Path(autoresearch.__file__).parent
TEMPLATE = PACKAGE / "lab" / "template"  # files that `new` copies: they import each other, not the package
README = Path(__file__).parent.parent / "README.md"
# The rooms of the package, from the top floor down. A room imports from the floors below it, and nothing else.
FLOORS = (
    ("commands",),
    ("views",),
    ("agents",),
    ("loop",),
    ("models",),
    ("lab",),
    ("researchers", "executors"),
    ("grading", "judging"),
    ("ledger",),
    ("base",),
)
ENTRY = {"__init__", "__main__", "cli"}  # above all floors
MOST_MODULES = 9  # at the top of one package; a package in it counts as one
STDLIB_ONLY = {
    *("base.errors", "base.atomic", "ledger.records", "ledger.events", "ledger.campaign", "ledger.ledger"),
    *("ledger.report", "grading.interface", "grading.diagnosis", "grading.clock", "grading.grader"),
    *("judging.interface", "judging.judge", "judging.posterior", "judging.confirmation", "judging.pruning"),
    *("judging.claims", "judging.comparability", "researchers.interface", "researchers.prompt"),
    *(
        "researchers.guard.rules",
        "researchers.guard.duplicates",
        "researchers.guard.check",
        "executors.interface",
        "lab.sizing.planner",
    ),
}
HEAVY = {
    *("torch", "optuna", "matplotlib", "pyarrow", "tiktoken", "rustbpe", "httpx", "scipy"),
    *("pydantic_ai", "openai", "anthropic", "mcp", "mcp_types", "arxiv", "pypdf"),
    *("safetensors", "starlette", "uvicorn", "ray"),
}
# Imported only when chosen, so their heavy libraries may stand at the top.
BACKENDS = (
    *("grading.probes", "grading.scoring", "grading.memory", "models.decoding", "models.rebuilding", "models.serving"),
    *("executors.cluster.driver", "executors.cluster.pool"),
    *("researchers.builtin.researcher", "researchers.llm.conversation", "views.chart"),
)


def modules() -> dict[str, Path]:
    files = (path for path in PACKAGE.rglob("*.py") if TEMPLATE not in path.parents)
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in files}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node of the package, with the name of its module."""
    return ((name, node) for name, path in modules().items() for node in ast.walk(ast.parse(path.read_text())))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of all that a file imports, `autoresearch.` names down to the module."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module.split(".")[0] == "autoresearch":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    """The package's modules that a file imports, by their names within the package."""
    known = modules()
    names = {name.removeprefix("autoresearch.") for name in imports(path) if name.startswith("autoresearch.")}
    return names & set(known)


def room(name: str) -> str:
    return name.split(".")[0]


def floor(name: str) -> int:
    """The number of a module's floor, counted from the bottom."""
    if room(name) in ENTRY:
        return len(FLOORS)
    return next(number for number, rooms in enumerate(reversed(FLOORS)) if room(name) in rooms)


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in modules()} == {each for rooms in FLOORS for each in rooms} | ENTRY


def test_a_room_imports_from_lower_floors_only() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in own(path)
        if room(name) != room(other) and room(name) not in ENTRY and floor(other) >= floor(name)
    ]
    assert wrong == []


def test_the_readmes_tree_draws_the_same_floors() -> None:
    tree = README.read_text().partition("<!-- tree -->")[2].partition("<!-- end of tree -->")[0]
    drawn = [(int(number), name) for number, name in re.findall(r"^(\d) +(\w+)/", tree, re.MULTILINE)]
    assert drawn == [(floor(name), name) for rooms in FLOORS for name in rooms]


def test_there_is_no_import_cycle() -> None:
    graph = {name: own(path) for name, path in modules().items()}
    done: set[str] = set()
    while ready := {name for name in graph if name not in done and graph[name] <= done}:
        done |= ready
    assert set(graph) - done == set()


def test_every_package_says_what_belongs_there_in_one_to_three_sentences() -> None:
    for name, path in modules().items():
        if path.name == "__init__.py":
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            sentences = re.findall(r"[.!?](?=\s|$)", said)
            assert 1 <= len(sentences) <= 3, name
            assert len(ast.parse(path.read_text()).body) == 1 or path.parent == PACKAGE, name


def test_no_package_is_crowded() -> None:
    for directory in {path.parent for path in modules().values()} - {PACKAGE}:
        inside = [
            path
            for path in directory.iterdir()
            if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file()
        ]
        assert len(inside) <= MOST_MODULES, directory.name


def test_the_loop_knows_no_concrete_backend() -> None:
    backends = (
        "researchers.builtin",
        "researchers.llm",
        "researchers.coding_agents",
        "researchers.simple",
        "executors.local",
    )
    for name, path in modules().items():
        if room(name) == "loop":
            assert [found for found in own(path) if found.startswith(backends) and name != "loop.parts.compose"] == []


def test_the_bottom_needs_the_standard_library_only() -> None:
    for name in STDLIB_ONLY:
        foreign = {found.split(".")[0] for found in imports(modules()[name])} - sys.stdlib_module_names
        assert foreign <= {"autoresearch"}, name


def test_heavy_libraries_are_imported_only_when_used() -> None:
    wrong = [
        f"{name} imports {found}"
        for name, path in modules().items()
        for found in imports(path, top_level_only=True)
        if found.split(".")[0] in HEAVY and name not in BACKENDS
    ]
    assert wrong == []


def test_only_git_and_process_start_processes() -> None:
    users = {name for name, path in modules().items() if "subprocess" in imports(path)}
    assert users == {"base.git", "base.process"}


def test_only_one_module_and_the_git_verbs_read_the_environment() -> None:
    users = {
        name
        for name, node in nodes()
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and ast.unparse(node.value) == "os"
    }
    assert users - {"grading.protocol", "executors.sandbox.landlock"} == {
        "base.variables",
        "base.git",
    }  # those are the run's side


def test_only_the_command_line_prints_and_exits() -> None:
    users = {
        name
        for name, node in nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit")
    }
    assert {room(user) for user in users} <= {"__main__", "cli", "commands"}


def test_functions_and_files_stay_short() -> None:
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name}"
    assert len((TEMPLATE / "train.py").read_text().splitlines()) <= 815
    assert len((TEMPLATE / "prepare.py").read_text().splitlines()) <= 700
