"""The site's pages: every block of code runs, page by page; every public name has its entry."""

import importlib.resources
import inspect
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import ffncore as fc

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not run from the source tree")
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Those whose code needs a GPU.
WITHOUT = ("gpu.md",)


def blocks(page, language="python"):
    text = (DOCS / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITHOUT])
def test_code_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("ml_dtypes")
    if any("safetensors" in code for code in blocks(page)):
        pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    before = fc.get_num_threads()
    np.random.seed(0)  # noqa: NPY002 (the short form reads better on a first page)
    try:
        for number, code in enumerate(blocks(page)):
            exec(compile(code, f"{page}, block {number + 1}", "exec"), names)
    finally:
        fc.set_num_threads(before)


def refusals():
    """(message, call that raises it) of faq.md; "..." in a message stands for anything."""
    text = (DOCS / "faq.md").read_text("utf-8") if DOCS.exists() else ""
    return re.findall(r"^### ([^\n]*)\n\n```py\n(.*?)```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("message, code", refusals(), ids=lambda text: text[:40])
def test_messages_of_the_faq_are_raised(message, code, tmp_path, monkeypatch):
    pytest.importorskip("ml_dtypes")
    if "safetensors" in code:
        pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(blocks("faq.md")), names)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        exec(code, names)
    parts = [re.escape(part.strip()) for part in message.split("...")]
    assert re.search(".*".join(parts), str(caught.value))


def test_the_faq_has_messages():
    assert len(refusals()) >= 15


COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("number", [0, 1])
def test_programs_in_c_run(number, tmp_path):
    (tmp_path / "program.c").write_text(blocks("c.md", "c")[number])
    package = importlib.resources.files("ffncore")
    folders = [f"-I{package / 'include'}", f"-L{package}", f"-Wl,-rpath,{package}"]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", *folders]
    subprocess.run(
        [COMPILER, "program.c", *flags, "-lffncore", "-lm", "-o", "program"],
        cwd=tmp_path,
        check=True,
    )
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_code_for_a_gpu_uses_names_that_exist():
    (code,) = blocks("gpu.md")
    compile(code, "gpu.md", "exec")
    assert [name for name in re.findall(r"\bfc\.(\w+)", code) if not hasattr(fc, name)] == []


def commands():
    """Lines of the pages' shell blocks."""
    return sorted(
        {line for page in PAGES for block in blocks(page, "sh") for line in block.split("\n")}
    )


def test_commands_name_what_is_there():
    root = DOCS.parent
    makefile = (root / "Makefile").read_text("utf-8")
    seen = set()
    for line in commands():
        words = line.split("#")[0].split()
        if not words:
            continue
        seen.add(words[0])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        if words[:3] == ["python", "-m", "ffncore"]:
            assert (root / "python" / "ffncore" / "cli" / f"{words[3]}.py").exists(), line
        paths = [word for word in words if re.match(r"(tests|bench|docs)/", word)]
        assert [path for path in paths if not (root / path).exists()] == [], line
    assert {"make", "python", "pytest", "pip", "cc"} <= seen


def test_every_public_name_has_its_entry():
    pages = "".join((DOCS / page).read_text("utf-8") for page in PAGES if page.startswith("api/"))
    told = set(re.findall(r"^::: ffncore\.(\w+)$", pages, re.MULTILINE))
    modules = {"memory", "reference"}
    assert told - modules == set(fc.__all__) - modules - {"__version__"}
    told = set(re.findall(r"^::: ffncore\.memory\.(\w+)$", pages, re.MULTILINE))
    assert told == set(fc.memory.__all__)


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
