"""Pages that tell where something is in the source: every file and every name is there.

In docs/how-it-works.md and docs/add-*.md a word in backticks that is a path has to exist, and any
other name has to stand in one of the files that its paragraph names, or in the page's own code.
The picture has to be what its script draws.
"""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not run from the source tree")
PAGES = ("how-it-works.md", *sorted(path.name for path in DOCS.glob("add-*.md")))
FOLDERS = ("bench", "csrc", "docs", "examples", "python", "tests")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def paragraphs(text):
    """Of prose; the items of a list and the rows of a table are paragraphs of their own."""
    return re.split(r"\n\s*\n|\n(?=[-|] ?)|\n(?=\d+\. )", FENCE.sub("\n\n", text))


def quoted(paragraph):
    """(paths, names) in backticks. ffncore.x and fc.x are of Python; the last part counts."""
    paths, names = [], []
    for word in re.findall(r"`([^`\n]+)`", paragraph):
        if word.startswith(tuple(folder + "/" for folder in FOLDERS)):
            paths.append(word)
        elif re.fullmatch(r"(fc\.|F::)?[A-Za-z_]{4,}\w*", word):
            names.append(re.split(r"\.|::", word)[-1])
    return paths, names


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_exist(page):
    text = (DOCS / page).read_text("utf-8")
    own = "".join(FENCE.findall(text))
    wrong = []
    for paragraph in paragraphs(text):
        paths, names = quoted(paragraph)
        there = [path for path in paths if (ROOT / path).exists()]
        wrong += [path for path in paths if path not in there]
        files = [ROOT / path for path in there if (ROOT / path).is_file()]
        source = "".join(file.read_text("utf-8") for file in files) + own
        wrong += [n for n in names if files and not re.search(rf"\b{n}\b", source)]
    assert wrong == []


def test_the_picture_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("draw_panels", DOCS / "draw_panels.py")
    draw_panels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_panels)
    assert draw_panels.draw() == draw_panels.FILE.read_text("utf-8")
