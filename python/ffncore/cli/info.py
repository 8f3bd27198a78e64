"""`python -m ffncore info`: version, machine, instruction sets, threads.

Tests: tests/cli/test_cli.py.
"""

from __future__ import annotations

import argparse

from ..runtime.config import show_config

HELP = """\
Shows the version, the machine, the instruction sets and the threads.

It prints what fc.show_config() prints: how the package was built, what this
CPU has, which instruction set a call uses, and how many threads. FFNCORE_ISA
and FFNCORE_NUM_THREADS change the last two.
"""
EXAMPLES = ("info",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 (as for every command)
    show_config()
    return 0
