"""What `make test` leaves out: the tests marked slow, but never all tests of a file."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = sorted(path for path in TESTS.rglob("test_*.py") if path.parent.name != "conformance")

# Files that have slow tests alone.
SLOW_ALONE = {
    "backends/test_plan.py": "the smallest layer with that plan takes 700 GFLOP",
}


def is_slow(node):
    """A decorator alone: a marked parameter leaves the others."""
    return any(ast.unparse(decorator) == "pytest.mark.slow" for decorator in node.decorator_list)


def quick_tests(path):
    body = ast.parse(path.read_text("utf-8")).body
    whole = [ast.unparse(node) for node in body if isinstance(node, ast.Assign)]
    if any(line.startswith("pytestmark") and "mark.slow" in line for line in whole):
        return []
    functions = [n for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    return [function.name for function in functions if not is_slow(function)]


def test_every_file_has_a_quick_test():
    assert len(FILES) > 50
    alone = {str(path.relative_to(TESTS)) for path in FILES if not quick_tests(path)}
    assert alone == set(SLOW_ALONE)
