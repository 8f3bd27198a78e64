"""The folders of csrc/: which files include which, read from the sources.

An include points to the same folder or to one below it in FLOORS, never up and never in a circle. A
folder has at most 12 files, so that its list can be read at a glance, and a file at most 400 lines.
"""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
pytestmark = pytest.mark.skipif(not SOURCES.exists(), reason="not run from the source tree")

# From the top, as csrc/README.md shows them.
FLOORS = [
    "bindings",
    "api",
    "bench",
    *(f"ops/{name}" for name in ("mixture", "routing", "layer", "norm", "product", "operands")),
    *(f"ops/{name}" for name in ("packing", "schedule", "arrays")),
    "core",
    "kernels",
    "include",
]
# The second library: it may include ffncore_cuda.h, and nothing of the CPU library.
CUDA = "cuda"
# The bodies in kernels/ and cuda/ are text that few files include, one idea each.
MOST_FILES = {"kernels": 23, CUDA: 30}
SUFFIXES = {".h", ".cpp", ".inl", ".cu", ".cuh"}
# Not in csrc/: it replaces CUDA in tests of the kernels on a CPU.
EMULATOR = "cuda_emulator.h"
# The only header of instruction sets that others may include, and scalar functions in double.
FACES_OF_KERNELS = {"kernels/kernels.h", "kernels/math64.h"}


def includes():
    """A dict from each file to the files of csrc/ that it includes, as paths below csrc/."""
    found = {}
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix not in SUFFIXES:
            continue
        named = re.findall(r'^#include "(.+)"', path.read_text(), re.M)
        targets = [(path.parent / name).resolve() for name in named if name != EMULATOR]
        found[path.relative_to(SOURCES).as_posix()] = [
            target.relative_to(SOURCES).as_posix() for target in targets
        ]
    return found


def folder(name):
    return name.rpartition("/")[0]


def test_every_include_names_a_file():
    files = includes()
    assert {target for targets in files.values() for target in targets} <= files.keys()


def test_no_file_lies_outside_the_floors():
    assert {folder(name) for name in includes()} == {*FLOORS, CUDA}


def test_includes_point_down():
    for name, targets in includes().items():
        for target in targets:
            here, there = folder(name), folder(target)
            if here == CUDA:
                assert there in (CUDA, "include"), f"{name} includes {target}"
            else:
                assert FLOORS.index(here) <= FLOORS.index(there), f"{name} includes {target}"
                assert there != "kernels" or here == there or target in FACES_OF_KERNELS, (
                    f"{name} includes {target}"
                )


def test_no_circles():
    files = includes()
    done = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for target in files[name]:
                visit(target, [*above, name])
            done.add(name)

    for name in files:
        visit(name, [])


def test_a_folder_has_at_most_12_files():
    counts = {}
    for name in includes():
        counts[folder(name)] = counts.get(folder(name), 0) + 1
    crowded = {name: n for name, n in counts.items() if n > MOST_FILES.get(name, 12)}
    assert not crowded


def test_a_file_has_at_most_400_lines():
    lengths = {name: len((SOURCES / name).read_text().splitlines()) for name in includes()}
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_readme_shows_the_floors_in_this_order():
    text = (SOURCES / "README.md").read_text()
    shown = re.findall(r"^    (  )?([a-z]+)/", text, re.M)
    assert [("ops/" if deeper else "") + name for deeper, name in shown if name != "ops"] == FLOORS
