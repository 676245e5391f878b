"""report.html: what a run did, on one page that needs nothing else."""

from __future__ import annotations

import html
import io
import os
from pathlib import Path
from typing import Any

from edgefast.errors import InputError
from edgefast.files import replacing

__all__ = ["write_report"]

# Okabe-Ito: told apart by colour-blind readers and in print.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#666666"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.sub, figcaption { color: #555; } .note { background: #fff4d6; border-left: 4px solid #e69f00; padding: .5rem 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile { border: 1px solid #ddd; border-radius: 6px; padding: .5rem .75rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: #555; font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; } figcaption { font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: right; padding: .15rem .75rem; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; } td { font-variant-numeric: tabular-nums; }
.scroll { max-height: 22rem; overflow: auto; scrollbar-gutter: stable; border: 1px solid #eee; }
.scroll th { position: sticky; top: 0; background: #fff; }
.columns { display: flex; flex-wrap: wrap; gap: 0 4rem; align-items: flex-start; } .columns > div { max-width: 100%; }
@media (max-width: 32rem) { table { font-size: .8rem; } th, td { padding: .15rem .25rem; } }
"""


def write_report(metrics: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write one self-contained HTML page with four plots: accuracy, queue depth, uplink bytes, throughput.

    Args:
        metrics: of a `RunResult`; a partial one, of an interrupted run, gives a partial report.
        path: the file to write.

    Raises:
        InputError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("the report needs matplotlib; pip install 'edgefast[cli]'") from None
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "edgefast",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "axes.axisbelow": True,
        }
    ):
        figures = [
            _figure("Accuracy per round", _accuracy, metrics),
            _figure("Queue depth over time", _depth, metrics),
            _figure("Uplink bytes with and without sketching", _uplink, metrics),
            _figure("Throughput per stage", _throughput, metrics),
        ]
    with replacing(Path(path)) as file:
        file.write_text(_page(metrics, figures), encoding="utf-8")


def describe_faults(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """("lost" or "late", who, when and why) of every device that was missing from a round: a sentence for each."""
    found = []
    devices = metrics["config"]["devices"]
    for fault in metrics["faults"]:
        if fault["kind"] == "lost":
            found.append(("lost", f"device {fault['device']} in round {fault['round']}: {fault['reason']}"))
    rounds: dict[tuple[int, str], list[int]] = {}
    for fault in metrics["faults"]:
        if fault["kind"] == "late":
            rounds.setdefault((fault["device"], fault["reason"]), []).append(fault["round"])
    for (device, reason), late in rounds.items():
        found.append(("late", f"device {device} in {_spans(late)}: {reason}"))
    lost = sum(kind == "lost" for kind, _ in found)
    if 0 < lost < devices:
        found[lost - 1] = ("lost", f"{found[lost - 1][1]}; {devices - lost} of {devices} devices went on")
    return found


def _spans(rounds: list[int]) -> str:
    """round 3; rounds 3, 5-7."""
    parts: list[list[int]] = []
    for number in rounds:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    return f"round {text}" if len(rounds) == 1 else f"rounds {text}"


# ---- plots: each draws on the axes it is given and returns its caption ---------------------------------------------


def _figure(title: str, draw: Any, metrics: dict[str, Any]) -> str:
    from matplotlib.figure import Figure  # no pyplot: no display, no state of the process

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    caption = draw(figure, metrics)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # an XML prologue has no place inside a page
    label = html.escape(f"{title}. {caption}", quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure><h2>{html.escape(title)}</h2>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _accuracy(figure: Any, metrics: dict[str, Any]) -> str:
    axes = figure.subplots()
    rounds = metrics["rounds"]
    found = metrics["accuracy"]
    axes.plot([r["round"] for r in rounds], [r["accuracy"] for r in rounds], color=_BLUE, marker=".", label="federated")
    lowest = min([r["accuracy"] for r in rounds], default=0.0)
    for key, label, colour, dashes in (
        ("centralised", "all rows in one place, same sketch", _GREEN, "--"),
        ("centralised_raw", "all rows in one place, raw features", _ORANGE, ":"),
    ):
        if found[key] is not None:
            axes.axhline(found[key], color=colour, linestyle=dashes, label=label)
            lowest = min(lowest, found[key])
    for kind, label, colour, dashes in (("lost", "a device lost", _RED, "-"), ("late", "a device late", _GREY, ":")):
        missed = sorted({f["round"] for f in metrics["faults"] if f["kind"] == kind})
        begins = [r for r in missed if kind == "lost" or r - 1 not in missed]
        for number in begins:
            axes.axvline(
                number, color=colour, linestyle=dashes, linewidth=1, label=label if number == begins[0] else None
            )
    axes.set(xlabel="round", ylabel="accuracy on the test rows", ylim=(max(0.0, lowest - 0.05), 1.01))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(rounds) == 1:  # one point has no extent of its own: matplotlib would show rounds 0.96 to 1.04
        axes.set_xlim(0, 2)
    axes.legend(loc="lower right", facecolor="white", edgecolor="none")
    if found["centralised"] is None or found["federated"] is None:
        return "The reference lines were not computed."
    gap = 100 * (found["centralised"] - found["federated"])
    where = "below" if gap >= 0 else "above"
    return (
        f"After {counted(len(rounds), 'round')}: {found['federated']:.1%}, {abs(gap):.1f} points {where} training with "
        "all rows in one place on the same sketched features."
    )


def _depth(figure: Any, metrics: dict[str, Any]) -> str:
    queue = metrics["queue"]
    depth, trace = queue["depth"], queue["trace"]
    whole, close = figure.subplots(2, 1)
    whole.fill_between(*_envelope(depth["seconds"], depth["max"]), step="mid", color=_BLUE, alpha=0.35, linewidth=0)
    whole.set(xlabel="whole run: fullest queue, seconds")
    close.step([1000 * t for t in trace["seconds"]], trace["depth"], where="post", color=_BLUE, linewidth=1)
    close.set(xlabel=f"first round of device {trace['device']}: at every batch, milliseconds")
    for axes in (whole, close):
        axes.axhline(queue["high_watermark"], color=_RED, linestyle="--", linewidth=1, label="closes (high watermark)")
        axes.axhline(queue["low_watermark"], color=_GREEN, linestyle="--", linewidth=1, label="reopens (low watermark)")
        axes.set(ylim=(0, queue["maxsize"]), xlim=(0, None))
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.supylabel("batches waiting", fontsize=10)
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, ncols=2, fontsize=9)
    text = (
        f"The queues closed {counted(queue['high_events'], 'time')} and sources waited "
        f"{counted(queue['full_waits'], 'time')}; the most batches held at once were {queue['peak']}."
    )
    if queue["policy"] != "block":
        text += f" {queue['dropped']:,} of {queue['offered']:,} batches were dropped."
    return text


def _envelope(seconds: list[float], values: list[int]) -> tuple[list[float], list[int]]:
    """The largest value of each of at most 200 equal spans of time: every sample in the plot would be a solid block."""
    if not seconds:
        return [], []
    span = max(seconds[-1], 1e-9) / 200
    largest: dict[int, int] = {}
    for t, value in zip(seconds, values, strict=True):
        slot = int(t / span)
        largest[slot] = max(largest.get(slot, 0), value)
    return [(slot + 0.5) * span for slot in largest], list(largest.values())


def _uplink(figure: Any, metrics: dict[str, Any]) -> str:
    sent = metrics["uplink_bytes"]
    panels = (
        ("model updates, all rounds", sent["updates_without_sketch"], sent["updates"]),
        ("the data itself, sent once", sent["data_without_sketch"], sent["data"]),
    )
    for axes, (title, raw, sketched) in zip(figure.subplots(1, 2), panels, strict=True):
        bars = axes.bar((0, 1), (raw, sketched), 0.6, color=(_GREY, _BLUE))
        axes.bar_label(bars, [_bytes(raw), _bytes(sketched)], padding=2, fontsize=9)
        axes.set_xticks((0, 1), ("raw features", "sketched"))
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, max(raw, 1) * 1.12)
        axes.yaxis.set_major_formatter(lambda v, _: _bytes(v))
        axes.grid(False, axis="x")
    d, k = metrics["data"]["features"], metrics["config"]["components"]
    return (
        f"{d} features become {k}. The operator itself is {sent['operator']} bytes for each device, standardisation "
        f"sent {_bytes(sent['standardisation'])} once."
    )


def _throughput(figure: Any, metrics: dict[str, Any]) -> str:
    axes = figure.subplots()
    stages = {name: stage for name, stage in metrics["stages"].items() if stage["per_second"]}
    names = list(stages)[::-1]
    values = [stages[n]["per_second"] for n in names]
    # Dots, not bars: on a logarithmic axis the length of a bar means nothing.
    axes.plot(values, range(len(names)), "o", color=_BLUE, markersize=8)
    for y, (name, value) in enumerate(zip(names, values, strict=True)):
        text = f"{_count(value)} {stages[name]['unit']}/s"
        axes.annotate(text, (value, y), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.5, max(len(names), 1) - 0.3)
    if values:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 5, max(values) * 5)
    axes.set(xlabel="per second of the stage's own CPU time")
    return "What one core does in each stage; waiting is not counted. Logarithmic scale; mind the units."


# ---- page ----------------------------------------------------------------------------------------------------------


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def counted(number: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000 or unit == "G":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError


def _table(rows: list[tuple[Any, ...]], head: tuple[str, ...] = ()) -> str:
    def cells(row: tuple[Any, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in row) + "</tr>"

    return "<table>" + (cells(head, "th") if head else "") + "".join(cells(r, "td") for r in rows) + "</table>"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _page(metrics: dict[str, Any], figures: list[str]) -> str:
    accuracy, queue, sent = metrics["accuracy"], metrics["queue"], metrics["uplink_bytes"]
    config, data, backend = metrics["config"], metrics["data"], metrics["backend"]
    rounds = metrics["rounds"]
    saved = 1 - sent["updates"] / sent["updates_without_sketch"] if sent["updates_without_sketch"] else None
    tiles = [
        (_percent(accuracy["federated"]), "accuracy, federated"),
        (_percent(accuracy["centralised"]), "same sketch, one place"),
        (_percent(accuracy["centralised_raw"]), "raw features, one place"),
        (_percent(saved), "of update bytes saved"),
        (f"{queue['dropped']:,}", "batches dropped"),
        (f"{metrics['seconds']:.1f} s", f"for {counted(len(rounds), 'round')}"),
    ]
    notes = []
    if metrics["interrupted"]:
        notes.append(
            f"Interrupted after {len(rounds)} of {config['rounds']} rounds: this report and the model hold what was "
            "finished."
        )
    if metrics["deserted"]:
        notes.append(
            f"Every device was lost after {len(rounds)} of {config['rounds']} rounds, which this report holds."
        )
    notes += [f"{kind.capitalize()}: {text}." for kind, text in describe_faults(metrics)]
    if metrics["faults"]:
        notes[-1] += " A device that misses a round leaves its rows out of it: another run gives another model."
    if config["policy"] != "block":
        notes.append(
            f"With policy {config['policy']!r} it depends on timing which batches are dropped: another run with the "
            "same seed gives another model."
        )
    shares = data["rows_per_device"]
    least, most = min(shares), max(shares)
    held = f"{least:,} training rows" if least == most else f"{least:,} to {most:,} training rows"
    apart = " in processes of their own" if config["processes"] else ""
    used = {**config, "high_watermark": queue["high_watermark"], "low_watermark": queue["low_watermark"]}
    options = [(key.replace("_", " "), "default" if value is None else value) for key, value in used.items()]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>edgefast run: {html.escape(data['name'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Federated training on {html.escape(data['name'])}</h1>",
        f"<p class=sub>{data['rows']:,} rows, {data['features']:,} features, {data['classes']} classes, on "
        f"{counted(config['devices'], 'device')}{apart} with {held}{' each' if len(shares) > 1 else ''}; "
        f"{data['test_rows']:,} rows kept for scoring. edgefast {html.escape(metrics['edgefast'])}, backend "
        f"{html.escape(backend['name'])}{html.escape(f' ({simd})' if (simd := backend['simd']) else '')}, "
        f"{counted(backend['threads'], 'thread')}.</p>",
        *(f"<p class=note>{html.escape(n)}</p>" for n in notes),
        "<div class=tiles>",
        *(f"<div class=tile><b>{html.escape(v)}</b><span>{html.escape(t)}</span></div>" for v, t in tiles),
        "</div><div class=plots>",
        *figures,
        "</div><div class=columns><div><h2>Rounds</h2><div class=scroll>",
        _table(
            [
                (
                    r["round"],
                    _percent(r["accuracy"]),
                    "–" if r["loss"] is None else f"{r['loss']:.3f}",
                    f"{r['rows']:,}",
                    r["devices"],
                    r["dropped"],
                    f"{1000 * r['seconds']:.0f}",
                )
                for r in rounds
            ],
            ("round", "accuracy", "loss", "rows", "devices", "dropped", "ms"),
        ),
        "</div></div><div><h2>Options</h2>",
        _table(options),
        "</div></div>",
        "</body></html>\n",
    ]
    return "\n".join(parts)
