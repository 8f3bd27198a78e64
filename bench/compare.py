"""Compares two results of `python -m ffncore bench --json`: which cases have become slower?

    python bench/compare.py OLD.jsonl NEW.jsonl [--tolerance 0.05] [--all]

Cases are compared by their share of the limit, which does not depend on the clock. The exit status
is 0 if no case has become slower by more than the tolerance, 1 if one has or is missing, and 2 if a
file cannot be read. If a file has a case more than once, the last row counts.
"""

import argparse
import json
import sys
from pathlib import Path

KEY = ("shape", "d", "f", "tokens", "mode", "dtype", "isa", "threads")
OPTIONAL = "routing"  # of mixtures


def read(path):
    """The cases of a file, by key."""
    cases = {}
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if row["kind"] == "case":
                cases[(*(row[field] for field in KEY), row.get(OPTIONAL, ""))] = row
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not cases:
        raise ValueError(f"{path} has no case; expected a file of bench --json")
    return cases


def compare(old, new, tolerance):
    """A list of (key, old share, new share or None, whether it is lost)."""
    rows = []
    for key, before in old.items():
        after = new.get(key)
        share = after["share"] if after else None
        lost = share is None or share < before["share"] * (1 - tolerance)
        rows.append((key, before["share"], share, lost))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", metavar="OLD", help="the file before a change")
    parser.add_argument("new", metavar="NEW", help="the file after it")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative (default: 0.05)")
    parser.add_argument(
        "--all", action="store_true", help="print all cases, not only the slower ones"
    )
    args = parser.parse_args(argv)
    try:
        rows = compare(read(args.old), read(args.new), args.tolerance)
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    for key, before, after, lost in rows:
        if lost or args.all:
            shape, _, _, tokens, mode, dtype, isa, threads, routing = key
            change = "missing" if after is None else f"{after:.3f} ({after / before - 1:+.1%})"
            print(
                f"{'SLOWER' if lost else '':>6} {shape:>16} {tokens:>5} tokens {mode:>6} {dtype} "
                f"{routing + ' ' if routing else ''}{isa} {threads} threads: "
                f"share {before:.3f} -> {change}"
            )
    count = sum(lost for *_, lost in rows)
    print(f"{len(rows)} cases; {count} are missing or slower by more than {args.tolerance:.0%}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
