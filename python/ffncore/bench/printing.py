"""A result of the bench as the line that is printed. Test: tests/bench/test_bench.py."""

from __future__ import annotations

from typing import Any


def describe(row: dict[str, Any]) -> str:
    """A result as the line that is printed; "" where there is nothing to say."""
    kind = row["kind"]
    if kind == "machine":
        return f"{row['cpu']}, {row['isa']}, {row['threads']} threads, ffncore {row['ffncore']}"
    if kind == "peak":
        return (
            f"FMA peak {row['fma'] / 1e9:.1f} GFLOP/s {row['dtype']}, clock "
            f"{row['clock'] / 1e9:.2f} GHz, {row['units']} FMA units "
            f"({100 * row['deviation']:+.1f} % from clock x width x units)"
        )
    if kind == "shape":
        form = "gated" if row["gated"] else "plain"
        mixture, columns = "", f"{'share':>6} {'best':>6} {'quiet':>7}  bound"
        if "experts" in row:
            mixture = f"{row['experts']} experts, {row['top_k']} a token, each "
            columns += f"  {'hit':>4} {'dense':>6} {'uniform':>7}  routing"
        return (
            f"\n{row['shape']}: {mixture}{row['d']} x {row['f']}, {row['activation']}, {form}, "
            f"{row['weight_bytes'] / 1e6:.1f} MB, read at {row['bandwidth'] / 1e9:.1f} GB/s; "
            f"rms error {row['error']:.1e} (numpy {row['numpy_error']:.1e})\n"
            f"{'mode':>8} {'tokens':>6} {'ms':>10} {'GFLOP/s':>9} {'GB/s':>7} {columns}"
        )
    if kind == "pack":
        return (
            f"    pack, from {row['source']}: {row['bytes_per_second'] / 1e9:.1f} GB/s, "
            f"{row['share']:.2f} of read bandwidth (best {row['best_share']:.2f})"
        )
    if kind == "skipped":
        return f"{row['shape']}: left out, {row['reason']}"
    if kind == "case":
        mixture = ""
        if "routing" in row:
            ratios = (_ratio(row.get("of_dense"), 6), _ratio(row.get("of_uniform"), 7))
            mixture = f"   {row['hit']:>4} {' '.join(ratios)}  {row['routing']}"
        return (
            f"{row['mode']:>8} {row['tokens']:>6} {1e3 * row['seconds']:>10.4f} "
            f"{row['gflops']:>9.1f} {row['gbytes']:>7.1f} "
            f"{row['share']:>6.2f} {row['best_share']:>6.2f} "
            f"{row['quiet_rounds']:>3} / {row['rounds']:<2} {row['bound']}{mixture}"
        )
    if kind == "routing":
        share = row["layer_share"]
        return (
            f"    routing {row['tokens']} tokens to {row['top_k']} of {row['experts']} experts: "
            f"{1e3 * row['seconds']:.4f} ms"
            + ("" if share is None else f", {100 * share:.2f} % of the layer's time")
        )
    if kind == "call":
        after = (
            f"after {1e3 * row['pause']:.0f} ms of other work" if row["pause"] else "back to back"
        )
        return (
            f"call, 384 x 1536, one token, {row['mode']}, {after}: {1e6 * row['seconds']:.1f} us, "
            f"beyond the kernel {1e6 * row['beyond_seconds']:.1f} us"
        )
    if kind == "activation":
        form = "gated" if row["gated"] else "plain"
        ratio = row["forward_per_second"] / row["backward_per_second"]
        return (
            f"{row['activation']:>12} {form}: {row['forward_per_second'] / 1e9:7.2f} G elements/s, "
            f"backward {row['backward_per_second'] / 1e9:7.2f} (costs {ratio:.2f} times as much)"
        )
    return ""


def _ratio(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"
