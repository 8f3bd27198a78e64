"""The folders of the package: which may import which, their sizes, and the heads of modules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ffncore

PACKAGE = Path(ffncore.__file__).parent
ROOT = Path(__file__).parents[2]

# From the top: each folder, and the folders below it that its modules may import, also inside
# functions and for type checkers. "ffncore" is __init__.py with the public names, which bench and
# cli use like any other program. The two backends are independent of each other, and nothing
# computes with reference.
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"bench", "ffncore", "models.writing", "models", "runtime", "arrays"},
    "bench": {"bench.peers", "ffncore", "values", "arrays", "_core"},
    "bench.peers": set(),  # which also run with interpreters that have no ffncore
    "ffncore": {
        *("models", "layers", "memory", "relatives", "quantisation", "functional", "norms"),
        *("runtime", "reference", "values", "values.packing", "encodings", "arrays"),
        *("old_paths", "_core"),
    },
    "models.writing": {
        *("models", "models.files", "quantisation", "runtime", "encodings", "arrays"),
    },
    "models": {
        *("models.families", "models.files", "layers", "quantisation", "runtime", "values"),
        *("encodings", "arrays"),
    },
    "models.families": {"models.files", "layers", "functional"},
    "models.files": {"arrays"},
    "layers": {"functional", "norms", "values", "values.packing", "encodings", "arrays"},
    "memory": {"functional", "passes", "values", "arrays"},
    "quantisation": {"functional", "runtime", "values", "encodings", "arrays"},
    "functional": {"passes", "norms", "backends.cpu", "backends.cuda", "values", "arrays", "_core"},
    "passes": {"backends.cpu", "backends.cuda", "values", "arrays", "_core"},
    "relatives": {"values", "arrays"},
    "norms": {"values", "arrays", "_core"},
    "runtime": {"backends.cuda", "_core"},
    "backends": set(),
    "backends.cpu": {"values", "arrays", "_core"},
    "backends.cuda": {"values", "arrays"},
    "reference": {"values", "encodings", "arrays", "_core"},
    "values.packing": {"values", "encodings", "arrays", "_core"},
    "values": {"encodings", "arrays", "_core"},
    "encodings": {"arrays"},
    "arrays": {"_core"},
    "old_paths": set(),
    "_core": set(),
}
MOST_FILES = 12
MOST_LINES = 400


def module_name(path):
    parts = ("ffncore", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
KNOWN = {*MODULES, "ffncore._core"}


def folder_of(module):
    """The folder of a module: "values" for ffncore.values.weights, "ffncore" for __init__.py."""
    path = MODULES.get(module)
    inside = module.removeprefix("ffncore").lstrip(".")
    if path is not None and path.name != "__init__.py" and "." in inside:
        inside = inside.rpartition(".")[0]
    return inside or "ffncore"


def imports(module):
    """The modules of the package that a module imports anywhere in its text."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & KNOWN) or {base}
            if not names <= KNOWN and names & KNOWN:  # of `from .. import _core, name`
                found.add(base)
    return {name for name in found if name in KNOWN} - {module}


ARROWS = {module: imports(module) for module in MODULES}


def circles():
    """The modules that import themselves by way of others."""
    reached = {}
    for module in ARROWS:
        found, new = set(), {module}
        while new:
            new = set().union(*(ARROWS.get(name, ()) for name in new)) - found
            found |= new
        reached[module] = found
    return [module for module, found in reached.items() if module in found]


def test_no_module_imports_itself_by_way_of_others():
    assert circles() == []


def test_the_list_of_folders_is_from_the_top():
    order = list(MAY_IMPORT)
    for folder, below in MAY_IMPORT.items():
        assert below <= set(order[order.index(folder) + 1 :]), folder


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    folder = folder_of(module)
    others = {folder_of(name) for name in ARROWS[module]} - {folder}
    assert others <= MAY_IMPORT[folder], f"{module} imports {sorted(others)}"


def test_lazy_names_are_below_the_public_names_too():
    paths = {*ffncore._LAZY, *ffncore._MODULES.values()}
    assert {folder_of(f"ffncore.{path}") for path in paths} <= {
        *MAY_IMPORT["ffncore"],
        "models.families",
        "models.files",
    }


def test_no_folder_has_more_files_than_a_reader_keeps_in_mind():
    for folder in {path.parent for path in MODULES.values()}:
        files = sorted(path.name for path in folder.glob("*.py"))
        assert len(files) <= MOST_FILES, f"{folder}: {files}"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


def test_import_loads_no_more_than_the_functions():
    code = "import sys, ffncore; print(*[n for n in sys.modules if n.startswith('ffncore.')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {folder_of(name) for name in done.stdout.split() if name in KNOWN}
    assert loaded <= {
        *("functional", "passes", "norms", "runtime", "backends", "backends.cpu", "values"),
        *("values.packing", "encodings", "arrays", "old_paths", "_core"),
    }


# ---- heads


def head(path):
    return ast.get_docstring(ast.parse(path.read_text())) or ""


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs a checkout")
def test_every_test_that_a_text_names_is_there():
    texts = [
        *PACKAGE.rglob("*.py"),
        *(path for path in (ROOT / "csrc").rglob("*") if path.suffix in FORMATS),
        *(ROOT / "bench").glob("*.py"),
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")),
    ]
    missing = [
        f"{path.relative_to(path.parents[1])}: {name}"
        for path in texts
        for name in re.findall(r"\btests/[\w/]*\w+\.(?:py|cpp|cu)\b", path.read_text())
        if not (ROOT / name).exists()
    ]
    assert missing == []


FORMATS = (".cpp", ".h", ".inl", ".cu", ".cuh", ".md")


@pytest.mark.parametrize("module", MODULES)
def test_every_file_that_a_module_names_is_there(module):
    folder = MODULES[module].parent
    names = re.findall(
        r"(?<![\w./])(?!test|bench/peer)[a-z_]+(?:/[a-z_]+)*\.py\b", MODULES[module].read_text()
    )
    missing = [n for n in names if not (folder / n).exists() and not (PACKAGE / n).exists()]
    assert missing == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_and_where_its_tests_are(module):
    text = head(MODULES[module])
    assert text
    if MODULES[module].name != "__init__.py":
        assert re.search(r"Tests?:\s+tests/", text), f"{module} names no test"
