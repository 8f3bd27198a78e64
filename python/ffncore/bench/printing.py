"""A result of the bench as the line that is printed. Test: tests/bench/test_bench.py."""

from __future__ import annotations

from .measure import Row


def describe(row: Row) -> str:
    """A result as the line that is printed; "" where there is nothing to say."""
    line = LINES.get(row["kind"])
    return "" if line is None else line(row).rstrip()


def title(row: Row) -> str:
    """Of the row of the machine: with what the numbers were measured."""
    return f"{row['cpu']}, {row['isa']}, {_threads(row)}, ffncore {row['ffncore']}"


def _peak(row: Row) -> str:
    return (
        f"FMA peak {row['fma'] / 1e9:.1f} GFLOP/s {row['dtype']}, clock "
        f"{row['clock'] / 1e9:.2f} GHz, {row['units']} FMA units "
        f"({100 * row['deviation']:+.1f} % from clock x width x units)"
    )


def _against(row: Row) -> str:
    line = f"{row['peer']} {row['version']}, {_threads(row)}, in a process of its own"
    if "code" in row:
        code = "\n".join("    " + each for each in row["code"].rstrip().splitlines())
        line += f":\n{code}"
    return line


def _shape(row: Row) -> str:
    """What a shape is, and the head of its table."""
    mixture, columns = "", f"{'share':>6} {'best':>6} {'quiet':>7}  {'bound':<5}"
    if "experts" in row:
        mixture = f"{row['experts']} experts, {row['top_k']} per token, each "
        columns += f"  {'hit':>4} {'dense':>6} {'uniform':>7}  routing"
    columns += "".join(f"  {name + ' takes':>12} {'share':>6}" for name in row.get("against", ()))
    return (
        f"\n{row['shape']}: {mixture}{row['d']} x {row['f']}, {row['activation']}, {_form(row)}, "
        f"{row['weight_bytes'] / 1e6:.1f} MB of weights, read at {row['bandwidth'] / 1e9:.1f} "
        f"GB/s; rms error {row['error']:.1e} (numpy's {row['numpy_error']:.1e})\n"
        f"{'mode':>8} {'form':>5} {'tokens':>6} {'ms':>10} {'GFLOP/s':>9} {'GB/s':>7} {columns}"
    )


def _case(row: Row) -> str:
    line = (
        f"{row['mode']:>8} {_form(row)} {row['tokens']:>6} {1e3 * row['seconds']:>10.4f} "
        f"{row['gflops']:>9.1f} {row['gbytes']:>7.1f} "
        f"{row['share']:>6.2f} {row['best_share']:>6.2f} "
        f"{row['quiet_rounds']:>2} / {row['rounds']:<2}  {row['bound']:<5}"
    )
    if "routing" in row:
        ratios = (_ratio(row.get("of_dense"), 6), _ratio(row.get("of_uniform"), 7))
        line += f"  {row['hit']:>4} {' '.join(ratios)}  {row['routing']}"
    for name in row.get("against", ()):
        line += f"  {row[f'of_{name}']:>10.2f} x {row[f'{name}_share']:>6.2f}"
    return line


def _pack(row: Row) -> str:
    return (
        f"    pack ({_form(row)}, from {row['source']}): {row['bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{row['share']:.2f} of the read bandwidth (best {row['best_share']:.2f})"
    )


def _skipped(row: Row) -> str:
    return f"{row['shape']}, {_form(row)}: left out, {row['reason']}"


def _routing(row: Row) -> str:
    share = row["layer_share"]
    return (
        f"    routing of {_count(row['tokens'], 'token')} to {row['top_k']} of {row['experts']} "
        f"experts: {1e3 * row['seconds']:.4f} ms"
        + ("" if share is None else f", {100 * share:.2f} % of the layer's time")
    )


def _call(row: Row) -> str:
    after = f"after {1e3 * row['pause']:.0f} ms of other work" if row["pause"] else "back to back"
    return (
        f"call, 384 x 1536, plain, one token, {row['mode']}, {after}: {1e6 * row['seconds']:.1f} "
        f"us, of which {1e6 * row['beyond_seconds']:.1f} us are not the kernel's"
    )


def _activation(row: Row) -> str:
    ratio = row["forward_per_second"] / row["backward_per_second"]
    return (
        f"{row['activation']:>12} {_form(row)}: {row['forward_per_second'] / 1e9:7.2f} G "
        f"elements/s, backward {row['backward_per_second'] / 1e9:7.2f} (takes {ratio:.2f} times as "
        f"long)"
    )


LINES = {
    "machine": title,
    "peak": _peak,
    "against": _against,
    "shape": _shape,
    "case": _case,
    "pack": _pack,
    "skipped": _skipped,
    "routing": _routing,
    "call": _call,
    "activation": _activation,
}


def _form(row: Row) -> str:
    return "gated" if row["gated"] else "plain"


def _threads(row: Row) -> str:
    return _count(row["threads"], "thread")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _ratio(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"
