"""What the adaptive pipeline reaches, out of the JSON of benchmark sessions: a table per workload, and the targets.

    python bench/pipeline/summary.py bench-results/raw.json [more.json ...] [figure.png]

Targets, without tuning: at least 95 % of the throughput of the best fixed size; at most 1.5 times the peak queued bytes
of the smallest fixed size that reaches those 95 %; 99 % of the items at most half as late as with size 1000 (not asked
of the balanced loads). Medians over the passes.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

FIGURES = ("items_per_s", "p50_ms", "p99_ms", "peak_kib", "cpu_s")


def collect(raw: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """workload -> contender -> figures."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for bench in raw["benchmarks"]:
        info = bench["extra_info"]
        if bench["group"] and bench["group"].startswith("pipeline ") and "peak_kib" in info:
            runs[bench["group"].removeprefix("pipeline "), info["contender"]].append(info)
    workloads: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (workload, name), infos in runs.items():
        workloads[workload][name] = {f: statistics.median(info[f] for info in infos) for f in FIGURES}
    return workloads


def reached(contenders: dict[str, dict[str, float]], name: str) -> dict[str, Any]:
    """The three ratios of a contender against the fixed sizes."""
    fixed = {int(n.removeprefix("fixed ")): f for n, f in contenders.items() if n.startswith("fixed ")}
    best = max(f["items_per_s"] for f in fixed.values())
    smallest = min(size for size, f in fixed.items() if f["items_per_s"] >= 0.95 * best)
    mine = contenders[name]
    return {
        "throughput": mine["items_per_s"] / best,
        "memory": mine["peak_kib"] / fixed[smallest]["peak_kib"],
        "smallest": smallest,
        "p99": mine["p99_ms"] / fixed[1000]["p99_ms"],
    }


def tables(workloads: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = []
    for workload, contenders in workloads.items():
        best = max(f["items_per_s"] for n, f in contenders.items() if n.startswith("fixed "))
        lines += [
            f"## {workload}",
            "",
            "| contender | items/s | of the best fixed | p50 | p99 | peak queued | CPU |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, f in contenders.items():
            lines.append(
                f"| {name} | {f['items_per_s']:.1f} | {f['items_per_s'] / best:.1%} | {f['p50_ms']:.0f} ms "
                f"| {f['p99_ms']:.0f} ms | {f['peak_kib']:.0f} KiB | {f['cpu_s']:.2f} s |"
            )
        lines.append("")
        for name in contenders:
            if name.startswith("edgefast"):
                r = reached(contenders, name)
                lines.append(
                    f"{name}: {r['throughput']:.1%} of the best fixed throughput, {r['memory']:.2f}x the memory of "
                    f"size {r['smallest']}, {r['p99']:.2f} of the p99 of size 1000."
                )
        lines.append("")
    return "\n".join(lines)


def figure(workloads: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Throughput over peak queued bytes: the sweep as a line, the others as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(workloads))
    rows = -(-len(workloads) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.8 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(workloads) :]:
        axis.set_axis_off()
    for axis, (workload, contenders) in zip(axes.flat, workloads.items(), strict=False):
        fixed = [f for n, f in contenders.items() if n.startswith("fixed ")]
        x, y = [f["peak_kib"] for f in fixed], [f["items_per_s"] for f in fixed]
        axis.plot(x, y, "o-", color="#888888", label="fixed sizes 1 to 10,000", markersize=4)
        for name, f in contenders.items():
            if name.startswith("fixed "):
                continue
            style = {"marker": "*", "s": 170, "zorder": 3} if name.startswith("edgefast") else {"marker": "s", "s": 25}
            axis.scatter(f["peak_kib"], f["items_per_s"], label=name, **style)
        axis.axhline(0.95 * max(y), color="black", linewidth=0.6, linestyle=":")
        axis.set_xscale("log")
        axis.set_title(workload, fontsize=10)
        axis.set_xlabel("peak queued KiB")
        axis.set_ylabel("items/s")
    axes[0, 0].legend(fontsize=6)
    plt.savefig(path, dpi=130)


def main(*paths: str) -> None:
    sources = [Path(p) for p in paths if not p.endswith(".png")]
    workloads = collect({"benchmarks": [b for p in sources for b in json.loads(p.read_text())["benchmarks"]]})
    print(tables(workloads))
    for target in paths:
        if target.endswith(".png"):
            figure(workloads, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
