"""Discouraging over unequal shares of centers: features keep their size, the main task its AUC, the center falls.

Each method trains a trunk on made features in which label and center are separate directions, so that nothing of the
label has to go. The thresholds are those that docs/guiding.md states.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

from conceptkit.families import DISCOURAGING
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.prefix import Pooled
from conceptkit.guide.training import predict, train
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.training import TrainingOptions

SHARES = {"equal": (0.25,) * 4, "unequal": (0.7, 0.1, 0.1, 0.1), "extreme": (0.9, 0.05, 0.03, 0.02)}
OPTIONS = TrainingOptions(trunk=(48, 24), epochs=11, warmup=6, patience=20, batch_size=32, lr=2e-3)
SEEDS = (0, 1)
LEAST_NORM, MOST_DEAD, MOST_LOST = 0.7, 0.10, 0.005


class Identity(nn.Module):
    num_features = 16

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x


@functools.cache
def rows_of(shares, confounding, informative):
    """Return features, label, center and split; the evaluation rows are balanced."""
    rng = np.random.default_rng(0)
    k, d = len(shares), Identity.num_features
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    means = 2.0 * informative * rng.normal(size=(k, 3))
    parts = []
    for n, share, tilt in ((640, shares, confounding), (320, shares, confounding), (1600, (1 / k,) * k, 0.0)):
        center = np.repeat(np.arange(k), [max(round(n * s), 4) for s in share])
        label = (rng.random(len(center)) < 0.5 + 0.5 * tilt * np.linspace(1, -1, k)[center]).astype(int)
        X = rng.normal(size=(len(center), d)) + 2.4 * (label[:, None] - 0.5) * axes[0] + means[center] @ axes[1:4]
        parts.append((X.astype(np.float32), label, center))
    ends = np.cumsum([0, *(len(part[1]) for part in parts)])
    rows = {name: np.arange(a, b) for name, a, b in zip(("train", "val", "test"), ends, ends[1:], strict=False)}
    return *(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)), rows


@functools.cache
def trained(shares, confounding, informative, method):
    """Return means over seeds on the evaluation rows: size of features, dead units, AUC, what a fresh probe reads."""
    X, label, center, rows = rows_of(shares, confounding, informative)
    tasks = [Task(name=MAIN, kind="categorical", classes=("normal", "tumor"))]
    if method is not None:
        tasks.append(Task(name="center", kind="categorical", classes=tuple("ABCD"), adversarial=True))
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        erases = method is not None and DISCOURAGING[method].erases
        model = GuidedModel(Identity(), 16, tasks, trunk=OPTIONS.trunk, dropout=OPTIONS.dropout, erases=erases).eval()
        inputs = Inputs((X,), Pooled(model))
        targets = {MAIN: label, "center": center}
        # The reference is the single task with the balanced main loss, as in guide.
        shortcut = center if confounding else torch.full_like(center, -1)
        how = OPTIONS.replace(method=method or "confusion")
        out = train(
            model, inputs, targets, rows, how, seed=seed, engine=TrainingEngine(device="cpu"), shortcut=shortcut
        )
        outputs, trunk = predict(out.model, inputs, device="cpu")
        features, test = trunk.double().numpy()[rows["test"]], rows["test"]
        live = (features != 0).mean(0) >= 0.02
        first = np.arange(len(test)) % 2 == 0
        Z = features[:, live] - features[:, live].mean(0)
        Z /= Z.std(0) + 1e-9
        truth = center.numpy()[test]
        probe = RidgeClassifierCV(np.logspace(-2, 4, 7)).fit(Z[first], truth[first])
        auc = roc_auc_score(label.numpy()[test], outputs[MAIN][test, 0].numpy())
        left = balanced_accuracy_score(truth[~first], probe.predict(Z[~first]))
        found.append((np.abs(features).mean(), 1 - live.mean(), auc, left))
    return dict(zip(("norm", "dead", "auc", "center"), np.mean(found, axis=0), strict=True))


if __name__ == "__main__":
    import sys
    import time

    for name, shares in SHARES.items():
        for confounding in (0.0, 0.8):
            for informative in (True, False):
                for method in (None, *sys.argv[1].split(",")):
                    t = time.process_time()
                    values = trained(shares, confounding, informative, method)
                    print(
                        name,
                        confounding,
                        informative,
                        method,
                        {k: round(float(v), 3) for k, v in values.items()},
                        round(time.process_time() - t, 1),
                        flush=True,
                    )
