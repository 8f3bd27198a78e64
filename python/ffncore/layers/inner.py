"""The path of Inner in pickles of layers; functional/inner.py has the module.

Tests: tests/layers/test_inner.py.
"""

from ..functional.inner import Inner as Inner
from ..functional.inner import InnerGrads as InnerGrads
from ..functional.inner import InnerSaved as InnerSaved
