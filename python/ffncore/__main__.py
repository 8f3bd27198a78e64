"""`python -m ffncore` runs the commands in cli/. Tests: tests/cli/test_cli.py."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
