"""`python -m ffncore info`: version, machine, instruction sets, threads.

Tests: tests/cli/test_cli.py.
"""

from __future__ import annotations

import argparse

from ..runtime.config import show_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 (as for every command)
    show_config()
    return 0
