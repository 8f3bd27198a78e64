"""`python -m ffncore`: info, inspect PATH, bench, selftest. Tests: tests/cli/test_cli.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol

import ffncore as fc

from . import bench, info, inspect, selftest


class Command(Protocol):
    """What a file of a command has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: dict[str, tuple[Command, str]] = {
    "info": (info, "version, machine, instruction sets, threads"),
    "inspect": (inspect, "the feed-forward layers of a checkpoint"),
    "bench": (bench, "speed, as share of the machine's limit"),
    "selftest": (selftest, "checks every instruction set in a few seconds"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ffncore", description=fc.__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (command, words) in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=words))
    args = parser.parse_args(argv)
    command, _ = COMMANDS[args.command]
    return command.run(args)
