"""The public names and signatures of the package are exactly those of public_names.txt."""

import importlib
import re
import subprocess
import sys

import pytest
from public_names import LIST, MODULES, lines

import ffncore as fc


def test_names_and_signatures_are_those_of_the_list():
    assert lines() == LIST.read_text().splitlines(), (
        "the public names have changed; if that is meant: python tests/package/public_names.py"
    )


@pytest.mark.parametrize("name", fc.__all__)
def test_every_name_is_there_and_listed(name):
    assert getattr(fc, name) is not None
    assert name in dir(fc)


def test_dir_has_the_public_names_and_no_others():
    """Before and after lazy modules are imported."""
    code = (
        "import ffncore as fc; before = dir(fc); fc.models, fc.reference; "
        "assert before == dir(fc) == sorted({*fc.__all__, 'models', 'reference'})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MODULES)
def test_module_paths_of_a_flat_package_still_lead_somewhere(name):
    module = importlib.import_module(f"ffncore.{name}")
    assert getattr(fc, name) is not None
    assert sys.modules[f"ffncore.{name}"] is module
    assert [shown for shown in MODULES[name] if not hasattr(module, shown)] == []


def test_a_module_path_hides_no_function():
    """Three names are both those of a function and those of a module that can be imported."""
    code = (
        "import ffncore.moe, ffncore.cost, ffncore as fc; "
        "assert callable(fc.moe) and callable(fc.cost); "
        "from ffncore.moe import moe_forward; from ffncore.cost import Cost; "
        "assert fc.moe_forward is moe_forward and fc.Cost is Cost; "
        "from ffncore import *; assert callable(moe) and load is fc.models.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def groups():
    """The names of the package's docstring by the title of their group."""
    found, title = {}, ""
    for line in fc.__doc__.splitlines():
        if re.fullmatch(r"[A-Z][\w ]+", line):
            title = line
        elif title and (row := re.match(r" {4}(\w+(?:, \w+)*)(?: {2,}\S|$)", line)):
            found.setdefault(title, []).extend(row[1].split(", "))
    return found


def test_the_docstring_lists_the_names_that_matter_in_groups():
    listed = [name for names in groups().values() for name in names]
    assert [name for name in listed if name not in fc.__all__] == []
    assert len(set(listed)) == len(listed) == 21
    assert len(groups()) == 5
    assert all(len(names) >= 3 for names in groups().values())
    assert {"ffn", "pack", "moe", "route", "load"} <= set(listed)
    assert len(fc.__doc__.splitlines()) < 50
