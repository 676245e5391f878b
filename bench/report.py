"""Turns the JSON of a benchmark session into a table of ratios (Markdown), a compact JSON and a plot.

    python bench/report.py bench-results/raw.json bench-results/

A ratio is the peer's median time over ours, medians taken over all passes: above 1 we are faster. Losing cases stay
in the table, marked.
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any


def collect(raw: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Groups in order of appearance; in each, one row per contender with the median over its passes."""
    samples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for bench in raw["benchmarks"]:
        label = bench["extra_info"].get("contender", bench["name"])
        samples[bench["group"] or bench["name"], label].append(bench)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (group, label), benches in samples.items():
        medians = [b["stats"]["median"] for b in benches]
        info = dict(benches[0]["extra_info"])
        # Contenders that move different numbers of items are compared by the time of one.
        scale = info.get("items", 1)
        medians = [m / scale for m in medians]
        groups[group].append(
            {
                "contender": label,
                "ours": bool(info.get("ours")),
                "seconds": statistics.median(medians),
                "spread": (max(medians) - min(medians)) / statistics.median(medians),
                "extra": {k: v for k, v in info.items() if k not in ("contender", "ours")},
            }
        )
    return groups


def seconds(t: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if t * scale >= 1:
            return f"{t * scale:.3g} {unit}"
    return f"{t * 1e9:.3g} ns"


def read_limit(raw: dict[str, Any], group: str) -> float | None:
    threads = next((int(w[:-1]) for w in group.split() if w[:-1].isdigit() and w.endswith("t")), 1)
    return next((entry["read_gb_s"] for entry in raw.get("limits") or [] if entry["threads"] == threads), None)


def table(raw: dict[str, Any], groups: dict[str, list[dict[str, Any]]]) -> str:
    config = raw["edgefast"]
    cpu = raw["machine_info"].get("cpu", {}).get("brand_raw", config["machine"])
    lines = [
        "# Benchmark table",
        "",
        f"edgefast {config['edgefast']}, {cpu}, {config['cpus']} CPUs, SIMD {', '.join(config['simd_levels'])}, "
        f"Python {config['python']}, numpy {config['packages']['numpy']}.",
        "Ratio = peer's median time / ours (best of our contenders listed first); above 1 we are faster.",
        "",
    ]
    for limit in raw.get("limits") or []:
        lines.append(
            f"- {limit['threads']} thread(s): read {limit['read_gb_s']:.1f} GB/s, copy {limit['copy_gb_s']:.1f} GB/s, "
            f"float32 GEMM {limit['gemm_gflop_s']:.0f} GFLOP/s"
        )
    for group, rows in groups.items():
        ours = [r for r in rows if r["ours"]]
        reference = ours[0]["seconds"] if ours else None
        limit = read_limit(raw, group)
        lines += [
            "",
            f"## {group}",
            "",
            "| contender | median (of one item, where items are counted) | spread | rate | ratio | notes |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            extra = dict(row["extra"])
            rate = ""
            if (moved := extra.pop("bytes", None)) is not None:
                gb_s = moved / row["seconds"] / 1e9
                rate = f"{gb_s:.2f} GB/s" + (f" ({gb_s / limit:.0%} of read)" if limit else "")
            elif extra.pop("items", None) is not None:
                rate = f"{1e-6 / row['seconds']:.3g} M/s"
            ratio = ""
            if reference is not None and row is not ours[0]:
                value = row["seconds"] / reference
                ratio = f"{value:.2f}x" + (" **(we lose)**" if value < 1 and not row["ours"] else "")
            notes = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in extra.items())
            lines.append(
                f"| {row['contender']} | {seconds(row['seconds'])} | {row['spread']:.0%} | {rate} | {ratio} | {notes} |"
            )
    return "\n".join(lines) + "\n"


def plot(groups: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Horizontal bars of peer time over our time, one per (group, peer), on a logarithmic axis around 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = []
    for group, rows in groups.items():
        ours = [r for r in rows if r["ours"]]
        if not ours:
            continue
        bars += [(f"{group}  vs {r['contender']}", r["seconds"] / ours[0]["seconds"]) for r in rows if not r["ours"]]
    if not bars:
        return
    bars.reverse()
    figure, axes = plt.subplots(figsize=(11, 0.28 * len(bars) + 1.2), layout="constrained")
    values = [v for _, v in bars]
    axes.barh(
        range(len(bars)), [v - 1 for v in values], left=1, color=["#1b7f5c" if v >= 1 else "#c2452d" for v in values]
    )
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *values) * 0.9, max(2.0, *values) * 1.6)
    for i, v in enumerate(values):
        axes.text(max(v, 1) * 1.03, i, f"{v:.0f}x" if v >= 9.95 else f"{v:.2g}x", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [textwrap.fill(label, 72) for label, _ in bars], fontsize=8)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("peer's time / edgefast's time, logarithmic\n(right of the line edgefast is faster)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=130)


def main(source: str, target: str) -> None:
    raw = json.loads(Path(source).read_text())
    out = Path(target)
    out.mkdir(parents=True, exist_ok=True)
    groups = collect(raw)
    text = table(raw, groups)
    (out / "table.md").write_text(text)
    (out / "results.json").write_text(
        json.dumps({"limits": raw.get("limits"), "edgefast": raw["edgefast"], "groups": groups}, indent=1) + "\n"
    )
    plot(groups, out / "ratios.png")
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:3])
