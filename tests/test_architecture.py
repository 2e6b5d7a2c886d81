"""Who may import whom: lower never imports higher, and plug-ins know nothing of each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import autoresearch

PACKAGE = Path(autoresearch.__file__).parent
# From the bottom to the top: a module may import what stands in an earlier row, and nothing else.
LAYERS = (
    {"__init__"},
    {"records", "errors", "landlock", "noise", "posterior", "fit"},
    {"events", "pruning"},
    {"campaign"},
    {
        "interfaces",
        "atomic",
        "git",
        "process",
        "interpreter",
        "sandbox",
        "usage",
        "guard",
        "confirming",
        "diagnosis",
        "trial",
        "stopwatch",
        "config",
        "registry",
        "hardware",
        "brief",
        "timing",
        "watching",
        "splits",
        "probes",
        "scoring",
    },
    {"ledger", "grader", "report", "workspace", "presets", "judge"},
    {"doctor", "fitting", "prompt", "archive", "memory", "standing", "audit", "models", "generating"},
    {"comparing"},
    {"papers"},
    {"researchers", "executors", "views"},
    {"stages", "sampling"},
    {"proposing", "running"},
    {"loop"},
    {"compose", "stopping"},
    {"interactive", "serving"},
    {"mcp_server"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
# What the plug-ins may import of the package, besides their own siblings where that is said.
ALLOWED = {
    "researchers": {
        *(
            "records",
            "events",
            "campaign",
            "brief",
            "errors",
            "interfaces",
            "guard",
            "prompt",
            "process",
            "report",
            "memory",
        )
    },
    "executors": {"records", "errors", "interfaces", "process", "trial", "watching", "sandbox", "usage"},
    "views": {
        *("records", "events", "errors", "report", "audit", "ledger", "atomic", "doctor", "campaign", "standing"),
        *("comparing", "fit"),
    },
}
STDLIB_ONLY = {
    *("records", "errors", "interfaces", "guard", "diagnosis", "timing", "ledger", "grader", "brief"),
    *("report", "memory", "prompt", "campaign", "events", "posterior", "pruning", "confirming", "judge", "standing"),
    *("comparing", "fit"),
}
HEAVY = {
    *("torch", "optuna", "matplotlib", "pyarrow", "tiktoken", "rustbpe", "httpx", "scipy"),
    *("pydantic_ai", "openai", "anthropic", "mcp", "mcp_types", "arxiv", "pypdf"),
    *("safetensors", "starlette", "uvicorn"),
}
# Imported only when chosen, so that their heavy libraries may stand at the top.
BACKENDS = (
    *("probes", "scoring", "generating", "serving"),
    *("researchers.builtin", "researchers.dialogue.conversation", "views.chart"),
)
LAB = PACKAGE / "lab"


def modules() -> dict[str, Path]:
    files = (path for path in PACKAGE.rglob("*.py") if LAB not in path.parents)
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


def level(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name.split(".")[0] in layer)


def test_every_module_has_its_layer() -> None:
    assert {name.split(".")[0] for name in modules()} == set().union(*LAYERS)


def test_lower_never_imports_higher() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in own(path)
        if level(other) > level(name)
    ]
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    graph = {name: own(path) for name, path in modules().items()}
    done: set[str] = set()
    while ready := {name for name in graph if name not in done and graph[name] <= done}:
        done |= ready
    assert set(graph) - done == set()


def test_researchers_executors_and_views_import_only_what_is_theirs() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        if (group := name.split(".")[0]) in ALLOWED
        for other in own(path)
        if other not in ALLOWED[group] and not other.startswith(f"{group}.")
    ]
    assert wrong == []


def test_the_loop_knows_no_concrete_backend() -> None:
    for module in ("loop", "proposing", "stages"):
        assert not any(name.startswith(("researchers", "executors", "views")) for name in own(modules()[module]))


def test_the_bottom_needs_the_standard_library_only() -> None:
    import sys

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
    assert users == {"git", "process"}


def test_only_config_and_the_git_verbs_read_the_environment() -> None:
    users = {
        name
        for name, node in nodes()
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and ast.unparse(node.value) == "os"
    }
    assert users - {"trial", "landlock"} == {"config", "git"}  # those two are the run's side


def test_only_the_command_line_prints_and_exits() -> None:
    users = {
        name
        for name, node in nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit")
    }
    assert {user.split(".")[0] for user in users} <= {"cli", "commands"}


def test_functions_and_files_stay_short() -> None:
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name}"
    assert len((LAB / "train.py").read_text().splitlines()) <= 664
    assert len((LAB / "prepare.py").read_text().splitlines()) <= 463
