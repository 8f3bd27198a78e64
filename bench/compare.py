"""Two results of `python -m ffncore bench --json`: what has become slower?

    python bench/compare.py OLD.jsonl NEW.jsonl [--tolerance 0.05] [--all]

Cases are compared by their share of the limit, which a change of the clock leaves alone. Exit
status: 0 nothing lost, 1 a case lost more than the tolerance or is missing, 2 an unreadable file.
Of a case that a file holds more than once, the last row counts.
"""

import argparse
import json
import sys
from pathlib import Path

KEY = ("shape", "d", "f", "tokens", "mode", "dtype", "isa", "threads")
OPTIONAL = "routing"  # mixtures have one


def read(path):
    """The cases of a file: {key: row}."""
    cases = {}
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if row["kind"] == "case":
                cases[(*(row[field] for field in KEY), row.get(OPTIONAL, ""))] = row
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not cases:
        raise ValueError(f"{path} holds no case")
    return cases


def compare(old, new, tolerance):
    """[(key, old share, new share or None, lost)]"""
    rows = []
    for key, before in old.items():
        after = new.get(key)
        share = after["share"] if after else None
        lost = share is None or share < before["share"] * (1 - tolerance)
        rows.append((key, before["share"], share, lost))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative, default 0.05")
    parser.add_argument("--all", action="store_true", help="print every case, not only the lost")
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
                f"{'LOST' if lost else '    '} {shape:>16} {tokens:>5} tokens {mode:>6} {dtype} "
                f"{routing + ' ' if routing else ''}{isa} {threads} threads: "
                f"share {before:.3f} -> {change}"
            )
    count = sum(lost for *_, lost in rows)
    print(f"{len(rows)} cases, {count} lost more than {args.tolerance:.0%}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
