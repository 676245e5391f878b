"""Robust rules under attack: accuracy of federated training on digits, rule by rule and attack by attack.

    python bench/aggregate/attacks.py [--seeds 5] [--rounds 200] [--page docs/attacks.md] [--json attacks.json]

20 clients, 4 of them Byzantine, train a small network (64-32-10, ReLU) on scikit-learn's digits. Every round each
client sends the momentum of its mini-batch gradients, the server combines the 20 messages with the rule and takes a
step. The Byzantine clients work together and know what the honest ones send. The rows of the tables go between the
marks in the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.aggregate import (
    bucketing,
    bulyan,
    centered_clip,
    clip_by_global_norm,
    geometric_median,
    krum,
    meamed,
    median,
    multi_krum,
    nnm,
    trimmed_mean,
    weighted_mean,
)
from edgefast.federated import digits, dirichlet_partition

Matrix = NDArray[Any]  # float32

CLIENTS, BYZANTINE = 20, 4
INPUTS, HIDDEN, CLASSES = 65, 32, 10  # one input, and one hidden unit more, is the constant 1
BATCH, STEP, MOMENTUM = 16, 0.5, 0.9
SPLITS: dict[str, float | None] = {"IID": None, "Dirichlet 0.3": 0.3}


# ---- rules -----------------------------------------------------------------------------------------------------------

F = BYZANTINE
Rule = Callable[[Matrix, "Server"], Any]


@dataclass
class Server:
    """What a rule may remember: the number of the round and the last result."""

    round: int = 0
    last: Matrix | None = None


def buckets(u: Matrix, s: Server) -> list[Any]:
    # Ten buckets of two, of which four may hold a Byzantine update.
    return bucketing(u, 2, seed=s.round, nonfinite="propagate")


#: Radius of clipping: about the norm of an honest message at the start.
RADIUS = 0.5

RULES: dict[str, Rule] = {
    "mean": lambda u, s: weighted_mean(u, nonfinite="drop"),
    "median": lambda u, s: median(u, nonfinite="rank"),
    "trimmed mean": lambda u, s: trimmed_mean(u, f=F, nonfinite="rank"),
    "meamed": lambda u, s: meamed(u, F, nonfinite="rank"),
    "krum": lambda u, s: krum(u, F, nonfinite="propagate"),
    "multi-krum": lambda u, s: multi_krum(u, F, nonfinite="propagate"),
    "bulyan": lambda u, s: bulyan(u, F, nonfinite="propagate"),
    "geometric median": lambda u, s: geometric_median(u, start="median", nonfinite="drop"),
    "centred clipping": lambda u, s: centered_clip(u, RADIUS, center=s.last, nonfinite="drop"),
    "norm clipping": lambda u, s: weighted_mean(clip_by_global_norm(u, RADIUS, nonfinite="drop")),
    "nnm + median": lambda u, s: median(nnm(u, F, nonfinite="drop")),
    "nnm + trimmed mean": lambda u, s: trimmed_mean(nnm(u, F, nonfinite="drop"), f=F),
    "nnm + krum": lambda u, s: krum(nnm(u, F, nonfinite="drop"), F),
    "nnm + geometric median": lambda u, s: geometric_median(nnm(u, F, nonfinite="drop"), start="median"),
    "bucketing + median": lambda u, s: median(buckets(u, s), nonfinite="rank"),
    "bucketing + krum": lambda u, s: krum(buckets(u, s), F, neighbours="byzfl", nonfinite="propagate"),
    "bucketing + geometric median": lambda u, s: geometric_median(buckets(u, s), start="median", nonfinite="drop"),
    "bucketing + centred clipping": lambda u, s: centered_clip(buckets(u, s), RADIUS, center=s.last, nonfinite="drop"),
}
#: The mean's policies for NaN and infinity, for the attack that sends them. "raise" stops the round.
POLICIES: dict[str, Rule] = {
    "mean, nonfinite=drop": RULES["mean"],
    "mean, nonfinite=propagate": lambda u, s: weighted_mean(u, nonfinite="propagate"),
}


# ---- attacks ---------------------------------------------------------------------------------------------------------


@dataclass
class View:
    """What the attackers know.

    Attributes:
        honest: messages of the honest clients of this round, (16, P).
        own: what the attackers would send if they were honest, (4, P).
        memory: theirs, from round to round.
    """

    honest: Matrix
    own: Matrix
    rng: np.random.Generator
    memory: dict[str, Any]


Attack = Callable[[View], NDArray[Any]]


def ipm(scale: float) -> Attack:
    """Inner product manipulation (Xie, Koyejo, Gupta, UAI 2019): -scale times the mean of the honest."""
    return lambda v: np.tile(-scale * v.honest.mean(0), (BYZANTINE, 1))


def alie_z(clients: int, byzantine: int) -> float:
    """The z of ALIE: Phi((n - f - s) / (n - f)), s = n // 2 + 1 - f workers have to be won over."""
    s = clients // 2 + 1 - byzantine
    return statistics.NormalDist().inv_cdf((clients - byzantine - s) / (clients - byzantine))


def alie(z: float) -> Attack:
    """A little is enough (Baruch, Baruch, Goldberg, NeurIPS 2019): mean - z deviations, coordinate by coordinate."""
    return lambda v: np.tile(v.honest.mean(0) - z * v.honest.std(0, ddof=1), (BYZANTINE, 1))


def mimic(v: View) -> NDArray[Any]:
    """Karimireddy, He, Jaggi, ICLR 2022: all send what one honest client sends, the one furthest along the direction in
    which the honest differ most.

    The direction is followed by Oja's rule while the attack runs; the client is chosen anew for ten rounds, then kept.
    """
    spread = v.honest - v.honest.mean(0)
    direction = v.memory.get("direction")
    if direction is None:
        direction = v.rng.normal(size=v.honest.shape[1])
    direction = direction / np.linalg.norm(direction)
    direction = 0.9 * direction + spread.T @ (spread @ direction) / np.square(spread).sum()
    v.memory["direction"] = direction
    along = v.memory["along"] = v.memory.get("along", 0.0) + v.honest @ direction
    v.memory["rounds"] = rounds = v.memory.get("rounds", 0) + 1
    if rounds <= 10:
        v.memory["client"] = int(np.abs(along).argmax())
    return np.tile(v.honest[v.memory["client"]], (BYZANTINE, 1))


def gaussian(v: View) -> NDArray[Any]:
    """Blanchard et al., NeurIPS 2017: noise of standard deviation 200."""
    return v.rng.normal(0, 200, v.own.shape)


def not_finite(v: View) -> NDArray[Any]:
    """One attacker sends NaN, one +infinity, one -infinity, one a single NaN in an honest message."""
    sent = v.own.copy()
    sent[0], sent[1], sent[2] = np.nan, np.inf, -np.inf
    sent[3, 7] = np.nan
    return sent


ATTACKS: dict[str, Attack | None] = {
    "none": None,
    # Li et al., "RSA", AAAI 2019, scaled so that four can turn a mean of twenty around.
    "sign flip ×10": lambda v: -10 * v.own,
    "IPM 0.5": ipm(0.5),
    "IPM 10": ipm(10.0),
    "ALIE z max": alie(alie_z(CLIENTS, BYZANTINE)),
    "ALIE 1.5": alie(1.5),
    "label flip": lambda v: v.own,  # their labels are flipped before the training: see Federation
    "mimic": mimic,
    "Gaussian": gaussian,
    "Inf/NaN": not_finite,
    "zero": lambda v: np.zeros_like(v.own),
}


# ---- training --------------------------------------------------------------------------------------------------------


class Federation:
    """20 clients with their shards of digits; the last 4 are Byzantine."""

    def __init__(self, split: str, seed: int, *, flipped: bool = False) -> None:
        data = digits()
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(data.y))
        test, train = order[:360], order[360:]
        X = np.hstack([data.X / 16, np.ones((len(data.y), 1))]).astype(np.float32)
        labels = np.asarray(data.y).astype(np.int64)
        self.X_test, self.y_test = X[test], labels[test]
        self.X, self.y = X[train], labels[train]
        alpha = SPLITS[split]
        if alpha is None:
            self.shards = np.array_split(rng.permutation(len(train)), CLIENTS)
        else:
            self.shards = [rng.permutation(s) for s in dirichlet_partition(self.y, CLIENTS, alpha=alpha, seed=seed)]
        if flipped:
            # Label flipping: the attackers are honest workers with labels 9 - y.
            for shard in self.shards[CLIENTS - BYZANTINE :]:
                self.y[shard] = CLASSES - 1 - self.y[shard]
        self.rng = rng

    def gradients(self, weights: Matrix) -> Matrix:
        """Mini-batch gradients of all clients, (20, P)."""
        rows = np.stack([shard[self.rng.integers(0, len(shard), BATCH)] for shard in self.shards])
        X, y = self.X[rows], self.y[rows]
        hidden, scores = forward(X, weights)
        residual = np.exp(scores - scores.max(-1, keepdims=True))
        residual /= residual.sum(-1, keepdims=True)
        np.put_along_axis(residual, y[..., None], np.take_along_axis(residual, y[..., None], -1) - 1, -1)
        residual /= np.float32(BATCH)
        second = hidden.transpose(0, 2, 1) @ residual
        back = (residual @ layers(weights)[1][:-1].T) * (hidden[..., :-1] > 0)
        first = X.transpose(0, 2, 1) @ back
        return np.hstack([first.reshape(CLIENTS, -1), second.reshape(CLIENTS, -1)])

    def accuracy(self, weights: Matrix) -> float:
        return float((forward(self.X_test, weights)[1].argmax(-1) == self.y_test).mean())


def layers(weights: Matrix) -> tuple[Matrix, Matrix]:
    first = INPUTS * HIDDEN
    return weights[:first].reshape(INPUTS, HIDDEN), weights[first:].reshape(HIDDEN + 1, CLASSES)


def forward(X: Matrix, weights: Matrix) -> tuple[Matrix, Matrix]:
    """Activations of the hidden layer, with the constant, and scores."""
    first, second = layers(weights)
    hidden = np.maximum(X @ first, 0)
    hidden = np.concatenate([hidden, np.ones((*hidden.shape[:-1], 1), np.float32)], axis=-1)
    return hidden, hidden @ second


def initial(seed: int) -> Matrix:
    """Weights drawn as in He et al. 2015."""
    rng = np.random.default_rng([seed, 3])
    first = rng.normal(0, np.sqrt(2 / INPUTS), INPUTS * HIDDEN)
    second = rng.normal(0, np.sqrt(1 / HIDDEN), (HIDDEN + 1) * CLASSES)
    return np.concatenate([first, second]).astype(np.float32)


def train(rule: Rule, attack: str, split: str, seed: int, rounds: int) -> float:
    """Accuracy on the held-out digits after the last round."""
    clients = Federation(split, seed, flipped=attack == "label flip")
    act = ATTACKS[attack]
    rng, memory = np.random.default_rng([seed, 2]), {}
    server = Server()
    weights = initial(seed)
    momentum = np.zeros((CLIENTS, weights.size), np.float32)
    honest = CLIENTS - BYZANTINE
    with np.errstate(over="ignore", invalid="ignore"):
        for server.round in range(rounds):
            momentum = np.float32(MOMENTUM) * momentum + np.float32(1 - MOMENTUM) * clients.gradients(weights)
            if not np.isfinite(momentum).all():
                break  # the model has been destroyed
            sent = momentum.copy()
            if act is not None:
                sent[honest:] = act(View(momentum[:honest], momentum[honest:], rng, memory))
            server.last = np.asarray(rule(sent, server))
            weights = weights - np.float32(STEP) * server.last
        return clients.accuracy(weights)


# ---- the page --------------------------------------------------------------------------------------------------------


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds, in per cent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def table(results: dict[str, dict[str, list[float]]]) -> str:
    attacks = list(next(iter(results.values())))
    lines = ["| rule | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 1) + "|"]
    for rule, row in results.items():
        lines.append(f"| {rule} | " + " | ".join(cell(v) for v in row.values()) + " |")
    return "\n".join(lines)


def fill(page: Path, name: str, text: str) -> None:
    """Puts text between the marks <!-- name --> and <!-- end --> of a page."""
    before, mark, rest = page.read_text().partition(f"<!-- {name} -->")
    if not mark or "<!-- end -->" not in rest:
        raise SystemExit(f"{page}: expected <!-- {name} --> ... <!-- end -->")
    page.write_text(f"{before}{mark}\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default 5)")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--page", type=Path, help="Markdown page whose tables to fill in")
    parser.add_argument("--json", type=Path, help="where to write every accuracy")
    args = parser.parse_args()
    found: dict[str, Any] = {"rounds": args.rounds, "seeds": args.seeds, "splits": {}, "policies": {}}
    for split in SPLITS:
        results: dict[str, dict[str, list[float]]] = {}
        for rule in RULES:
            results[rule] = {
                attack: [train(RULES[rule], attack, split, seed, args.rounds) for seed in range(args.seeds)]
                for attack in ATTACKS
            }
            print(f"{split}: {rule}", file=sys.stderr, flush=True)
        found["splits"][split] = results
    for name, rule in POLICIES.items():
        found["policies"][name] = {
            split: [train(rule, "Inf/NaN", split, seed, args.rounds) for seed in range(args.seeds)] for split in SPLITS
        }
    texts = {split: table(results) for split, results in found["splits"].items()}
    texts["policies"] = table(found["policies"])
    for name, text in texts.items():
        print(f"{name}\n\n{text}\n")
        if args.page:
            fill(args.page, name, text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
