"""Prints at the end of a run which model types were compared, and which were not and why. A run
without torch, such as `make test`, has nothing to compare and prints nothing.
"""

from __future__ import annotations

from importlib.util import find_spec

HAS_TORCH = find_spec("torch") is not None

if HAS_TORCH:
    import torch

    torch.set_num_threads(1)  # its threads cost more than they save on small models


def pytest_terminal_summary(terminalreporter):
    if not HAS_TORCH:
        return
    from not_covered import covered, not_covered
    from test_zoo import ZOO

    terminalreporter.section("model types")
    names = {row.model_type for row in ZOO}
    terminalreporter.write_line(
        f"{len(names)} are built by transformers, saved in two layouts and compared; they have "
        f"layers of {len(covered(ZOO))} model types. Not compared:"
    )
    for name, reason in not_covered().items():
        terminalreporter.write_line(f"  {name:<20} {reason}")
