"""`python -m ffncore`: its commands, each with a help text and examples.

Tests: tests/cli/test_cli.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from . import bench, info, inspect, quantize, run, selftest, verify

PROG = "python -m ffncore"


class Command(Protocol):
    """What a file of a command has."""

    @property
    def HELP(self) -> str: ...  # its first paragraph stands in the list of commands, too
    @property
    def EXAMPLES(self) -> tuple[str, ...]: ...  # what follows PROG
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: dict[str, Command] = {
    "info": info,
    "inspect": inspect,
    "run": run,
    "verify": verify,
    "quantize": quantize,
    "bench": bench,
    "selftest": selftest,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status. SystemExit(2) for arguments that are wrong."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser()
    if not words or (words[0] not in COMMANDS and not words[0].startswith("-")):
        found = f"command is {words[0]!r}" if words else "there is no command"
        parser.error(f"{found}; expected one of {', '.join(COMMANDS)}")
    args = parser.parse_args(words)
    return COMMANDS[args.command].run(args)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Checks an installation of ffncore, inspects, runs, checks and quantises the "
        "layers of a checkpoint, and measures the speed of layers.",
        epilog=f"`{PROG} COMMAND --help` explains a command and gives examples.",
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name, command in COMMANDS.items():
        first = command.HELP.partition("\n\n")[0].replace("\n", " ")
        examples = "".join(f"  {PROG} {line}\n" for line in command.EXAMPLES)
        sub = commands.add_parser(
            name,
            help=first[0].lower() + first[1:].rstrip("."),
            description=command.HELP,
            epilog=f"example{'s' * (len(command.EXAMPLES) > 1)}:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
    return parser
