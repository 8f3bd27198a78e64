"""docs/models.md is what the tables of ffncore.models say."""

import re

import pytest
from models_page import PAGE, page

from ffncore.models import FAMILIES, MOE_FAMILIES
from ffncore.models.files.defaults import DEFAULTS


@pytest.mark.skipif(not PAGE.exists(), reason="not run from the source tree")
def test_the_page_is_up_to_date():
    assert page() == PAGE.read_text("utf-8"), "run python tests/package/models_page.py"


def test_every_model_type_has_a_line():
    listed = re.findall(r"^\| `([\w-]+)` \| `[\w-]+` \| \w", page(), re.MULTILINE)
    assert sorted(listed) == sorted(DEFAULTS)
    assert set(listed) == {t for row in (*FAMILIES, *MOE_FAMILIES) for t in row.model_types}
