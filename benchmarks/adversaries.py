"""Do stronger adversaries guide better? Training centers of the embedded study, each left out in turn.

    python benchmarks/adversaries.py [--seeds 3] [--confounding 0.8] [--last-block] [--arms …] [--out FILE]

No row of an evaluation split is looked at: three of the four training centers train and validate (their own rows of
``train`` and ``val``), and the fourth is what an external center would be. Area and count are encouraged and the center
is discouraged, by conceptkit's methods with the one linear head that they have, and with what it has no option for: an
adversary with a hidden layer (64), several steps of the adversary for each of the network's, an ensemble of three whose
further steps are their own, and more strength. Per arm: the AUC on the center left out, the mean of the AUCs within the
training centers (validation rows), how well fresh probes, linear and with a hidden layer, fitted on the training rows,
read the center of the validation rows (balanced accuracy, chance 0.33), and R² of area and count on the center left out
by probes fitted on the training rows. In parentheses the paired difference to the baseline and its standard error over
centers and seeds; seeds of one center share its patients, so that the error is too small.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

import conceptkit as ck
from conceptkit.evaluate.scores import auc, balanced_accuracy, r2
from conceptkit.guide import training
from conceptkit.guide.building import build_model
from conceptkit.guide.inputs import inputs_for, prepare_inputs
from conceptkit.guide.loop import Loop
from conceptkit.guide.objective import encode, task_loss
from conceptkit.guide.plan import concept_task
from conceptkit.guide.recipes import recipe_options
from conceptkit.models.backbones import open_backbone
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.training import TrainingOptions
from conceptkit.probe.regression import RegressionConceptVector
from conceptkit.tables.patches import load_table

CONCEPTS = (("area", False), ("count", False))
BOTH = (*CONCEPTS, ("center", True))
ARMS = {
    "baseline": ((), {}, {}),
    "area, count": (CONCEPTS, {}, {}),
    "main loss balanced, no pressure": (BOTH, {"strength": 0.0}, {}),
    "confusion, main not balanced": (BOTH, {"balance_main": 0.0}, {}),
    "coral, main not balanced": (BOTH, {"method": "coral", "balance_main": 0.0}, {}),
    "confusion (default)": (BOTH, {}, {}),
    "confusion, hidden layer": (BOTH, {}, {"hidden": 64}),
    "confusion, 5 steps": (BOTH, {}, {"steps": 5}),
    "confusion, hidden layer, 5 steps": (BOTH, {}, {"hidden": 64, "steps": 5}),
    "confusion, 3 hidden, 5 steps": (BOTH, {}, {"hidden": 64, "members": 3, "steps": 5}),
    "confusion, 3 hidden, 5 steps, ×4": (BOTH, {"strength": 4.0}, {"hidden": 64, "members": 3, "steps": 5}),
    "reversal": (BOTH, {"method": "reversal"}, {}),
    "reversal, 3 hidden, 5 steps": (BOTH, {"method": "reversal"}, {"hidden": 64, "members": 3, "steps": 5}),
    "coral": (BOTH, {"method": "coral"}, {}),
    "mmd": (BOTH, {"method": "mmd"}, {}),
}


class Members(nn.Module):
    """Adversaries whose logits are averaged where the network meets them, and which learn by themselves."""

    def __init__(self, width: int, classes: int, hidden: int, members: int) -> None:
        super().__init__()

        def member() -> nn.Module:
            if not hidden:
                return nn.Linear(width, classes)
            return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))

        self.members = nn.ModuleList(member() for _ in range(members))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of the logits (n, classes)."""
        return torch.stack([member(x) for member in self.members]).mean(0)


def strengthen(model: nn.Module, seed: int, hidden: int = 0, members: int = 1) -> None:
    """Put another adversary in the place of the center's linear head."""
    old = model.heads["center"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Members(old.in_features, old.out_features, hidden, members)
    model.heads["center"] = head

    def held(reads):
        values = {name: p.detach() for name, p in head.named_parameters()}
        return {"center": torch.func.functional_call(head, values, (reads[None],))}

    model.held_outputs = held


class ManySteps(Loop):
    """A training in which the center's adversaries take more steps than the network."""

    steps = 1

    def training_step(self, rows, index):
        """Let the adversaries learn from other batches first, each from its own loss."""
        if "center" in self.model.heads and self.steps > 1:
            head = self.model.heads["center"]
            if not hasattr(self, "_own"):
                self._own = torch.optim.Adam(head.parameters(), lr=self.options.lr)
            task = next(t for t in self.model.tasks if t.name == "center")
            for _ in range(self.steps - 1):
                part = self.in_training[torch.randint(len(self.in_training), (len(rows),))]
                with torch.no_grad():
                    read = self.model.reads(*self.rest(*self.inputs.batch(part, self.device)))[None]
                factors = self.factors["train"].get("center")
                factors = None if factors is None else factors[part]
                self._own.zero_grad()
                losses = [task_loss(task, m(read), self.targets["center"][part], None, factors) for m in head.members]
                torch.stack(losses).sum().backward()
                self._own.step()
        return super().training_step(rows, index)


def probes(X: np.ndarray, codes: np.ndarray, fitted: np.ndarray, read: np.ndarray) -> tuple[float, float]:
    """Return the balanced accuracies of fresh probes of the center, linear and with a hidden layer."""
    scaler = StandardScaler().fit(X[fitted])
    found = []
    for probe in (
        LogisticRegression(C=0.1, max_iter=2000),
        MLPClassifier((64,), alpha=1e-2, early_stopping=True, max_iter=300, random_state=0),
    ):
        probe.fit(scaler.transform(X[fitted]), codes[fitted])
        found.append(balanced_accuracy(codes[read], probe.predict(scaler.transform(X[read])), codes[fitted].max() + 1))
    return found[0], found[1]


def figures(X, score, y, centers, values, at, left_out) -> dict[str, float]:
    """Return what one trained network is read by."""
    fitted, held_back = at["train"], at["val"]
    found = {"left out": auc(y[left_out], score[left_out])}
    within = [held_back[centers[held_back] == c] for c in np.unique(centers[held_back])]
    found["within"] = float(np.mean([auc(y[w], score[w]) for w in within if len(np.unique(y[w])) == 2]))
    codes = np.unique(centers, return_inverse=True)[1]
    codes = np.searchsorted(np.unique(codes[fitted]), codes)
    found["center, linear"], found["center, hidden"] = probes(X, codes, fitted, held_back)
    for concept, v in values.items():
        on, off = fitted[~np.isnan(v[fitted])], left_out[~np.isnan(v[left_out])]
        vector = RegressionConceptVector().fit(X[on], v[on])
        found[f"R² {concept}"] = r2(v[off], vector.predict(X[off]))
    return found


def main() -> None:
    """Train all arms with each center left out and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--confounding", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--last-block", action="store_true", help="train the network's last block too")
    parser.add_argument("--arms", nargs="*", choices=[*ARMS], help="arms beside the baseline; all without it")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    arms = {name: ARMS[name] for name in ARMS if not given.arms or name in {"baseline", *given.arms}}
    study = ck.embedded_study(confounding=given.confounding)
    data = load_table(study.table, kinds={"center": "categorical"})
    data = data.select(np.flatnonzero(np.isin(data.frame["split"], ["train", "val"])))
    split, centers = data.frame["split"].to_numpy(str), data.concept("center").values.astype(str)
    labels = data.concept("label").values.astype(str)
    classes = tuple(np.unique(labels))
    y = np.searchsorted(classes, labels)
    values = {name: data.concept(name).values for name, _ in CONCEPTS}
    backbone = open_backbone("mini_inception")
    shared, everything = None, []
    for seed in range(given.seeds):
        for left in np.unique(centers):
            at = {name: np.flatnonzero((split == name) & (centers != left)) for name in ("train", "val")}
            left_out, found = np.flatnonzero(centers == left), {}
            print(f"seed {seed}, {left} left out: {len(at['train'])} + {len(at['val'])}, {len(left_out)}", flush=True)
            for arm, (wishes, changes, adversary) in arms.items():
                start = time.perf_counter()
                own = {"epochs": given.epochs, **recipe_options("ours", backbone, []), **changes}
                options = TrainingOptions(**own if given.last_block else {**own, "unfreeze": ()})
                tasks = [Task(name=MAIN, kind="categorical", classes=classes)]
                tasks += [concept_task(data, name, at["train"], adversarial=a) for name, a in wishes]
                columns = {t.name: data.concept("label" if t.name == MAIN else t.name).values for t in tasks}
                targets = {t.name: encode(t, list(columns[t.name])) for t in tasks}
                network = build_model(backbone, tasks, options, seed=seed)
                ManySteps.steps = adversary.get("steps", 1)
                if adversary:
                    strengthen(network, seed, adversary.get("hidden", 0), adversary.get("members", 1))
                if shared is None:
                    batches = (
                        np.stack([data.pixels(k) for k in range(s, min(s + 32, len(data)))])
                        for s in range(0, len(data), 32)
                    )
                    shared = prepare_inputs(network, backbone, batches, batch_size=32, device="cpu")
                training.Loop = ManySteps
                result = training.train(network, inputs_for(network, shared), targets, at, options, seed=seed)
                outputs, trunk = training.predict(result.model, inputs_for(result.model, shared))
                score, X = outputs[MAIN][:, 0].double().numpy(), trunk.double().numpy()
                found[arm] = figures(X, score, y, centers, values, at, left_out)
                print(
                    f"    {arm:36s} " + " ".join(f"{k} {v:.3f}" for k, v in found[arm].items())
                    + f"  epoch {result.best_epoch}, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )  # fmt: skip
            everything.append(found)
            if given.out is not None:
                given.out.write_text(json.dumps(everything, indent=1))
    names = list(everything[0]["baseline"])
    print(f"\n{'arm':36s} " + " ".join(f"{n:>23s}" for n in names))
    for arm in arms:
        cells = []
        for name in names:
            own = np.array([run[arm][name] for run in everything])
            gain = own - np.array([run["baseline"][name] for run in everything])
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
            cells.append(f"{own.mean():.3f} ({gain.mean():+.3f} ± {error:.3f})".rjust(23))
        print(f"{arm:36s} " + " ".join(cells))


if __name__ == "__main__":
    main()
