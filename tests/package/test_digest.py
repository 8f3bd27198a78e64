"""The results of every function have the bits in digest.json, in every instruction set."""

import json

import digest
import pytest

EXPECTED = json.loads(digest.FILE.read_text())
RESULTS = dict(digest.results())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", RESULTS)
def test_the_bits_are_those_of_the_file(name):
    assert digest.digest(RESULTS[name]()) == EXPECTED[name]
