"""The site's pages: every block of Python runs, page by page; every public name has its entry."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import ffncore as fc

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not run from the source tree")
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Those whose code needs a GPU.
WITHOUT = ("gpu.md",)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITHOUT])
def test_code_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("ml_dtypes")
    monkeypatch.chdir(tmp_path)
    names = {}
    before = fc.get_num_threads()
    np.random.seed(0)  # noqa: NPY002 (the short form reads better on a first page)
    try:
        for number, code in enumerate(blocks(page)):
            exec(compile(code, f"{page}, block {number + 1}", "exec"), names)
    finally:
        fc.set_num_threads(before)


def test_every_public_name_has_its_entry():
    pages = "".join((DOCS / page).read_text("utf-8") for page in PAGES if page.startswith("api/"))
    told = set(re.findall(r"^::: ffncore\.(\w+)$", pages, re.MULTILINE))
    assert told - {"reference"} == set(fc.__all__) - {"reference", "__version__"}


def test_every_page_is_in_the_navigation():
    config = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    assert sorted(re.findall(r"- (\S+\.md)$", config, re.MULTILINE)) == PAGES


def public_members():
    for name in fc.__all__:
        value = getattr(fc, name)
        if name in ("__version__", "reference"):
            continue
        yield name, value
        if inspect.isclass(value):
            for member, own in vars(value).items():
                kinds = (property, classmethod, staticmethod)
                if not member.startswith("_") and (
                    inspect.isfunction(own) or isinstance(own, kinds)
                ):
                    yield f"{name}.{member}", getattr(value, member)


def test_every_public_name_has_a_docstring():
    assert [name for name, value in public_members() if not inspect.getdoc(value)] == []
