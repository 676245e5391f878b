"""edgefast predict: score new rows with the model a run left behind."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    text = "score the rows of a file with the model of a run, one class a line"
    parser = commands.add_parser("predict", help=text, description=text)
    parser.add_argument("folder", metavar="DIR", help="what `edgefast run --out DIR` left")
    parser.add_argument("file", metavar="FILE", help=".npz, .npy, .csv or .parquet with the model's features")
    parser.add_argument("--target", metavar="COLUMN", help="label column to compare with (default: the run's)")
    parser.add_argument("--out", metavar="DIR", help="write DIR/predictions.csv instead of standard output")
    parser.add_argument("--backend", help="auto, native, numba or numpy")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a kernel")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(function=_predict)


def _predict(args: argparse.Namespace) -> int:
    import edgefast as ef
    from edgefast.federated import InputError, load_model, read_features
    from edgefast.files import replacing

    if args.threads is not None and args.threads < 1:
        raise InputError(f"threads: expected a positive integer, got {args.threads}")
    with ef.using(args.backend, num_threads=args.threads):
        model = load_model(args.folder)
        X, labels = read_features(args.file, model.features, args.target or model.target)
        classes = model.predict(X).tolist()
    accuracy = None
    if labels is not None:
        # Labels are compared as they are written: a file may hold 3 where the model learnt 3.0 or "3".
        hits = sum(_same(a, b) for a, b in zip(classes, labels.tolist(), strict=True))
        accuracy = hits / len(classes)
    if args.out is not None:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "predictions.csv") as file, open(file, "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows([["prediction"], *([c] for c in classes)])
    if args.json:
        print(json.dumps({"predictions": classes, "accuracy": accuracy, "rows": len(classes)}))
    else:
        if args.out is None:
            print("\n".join(map(str, classes)))
        if accuracy is not None:
            print(f"accuracy {accuracy:.1%} on {len(classes)} rows", file=sys.stderr)
    return 0


def _same(predicted: Any, label: Any) -> bool:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return predicted == label or str(predicted) == str(label)
