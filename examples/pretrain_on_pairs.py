"""Train the bundled network further on pairs of patches: the same nuclei on two slides, and two patches of one slide.

The start are the weights of ``pretrain_mini_inception.py``, which were trained on drawings. Generated tissue follows,
by contrast (Chen et al., 2020, SimCLR): a head recognises the patch that shows the same nuclei, placed again and
stained on another slide, among all patches of a batch; a second head recognises the patch of the same slide, with
other nuclei. The features keep both, nuclei and stain.

The tissue is drawn by the program of ``embedded:shortcut`` from seeds of its own. Its stains are drawn at random, and
none is that of a center of the study. What the network does not see: a patch of the study, of any split; a concept
value; a label. Only which two patches belong together is known.

The bundled file was made by::

    python examples/pretrain_on_pairs.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pretrain_mini_inception import normalised, save_body
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from conceptkit.models import mini_inception
from conceptkit.models.mini_inception import LAYER_NAMES, MiniInception, load_mini_inception
from conceptkit.synthetic.patch import Center
from conceptkit.synthetic.shortcut import nuclear_areas, placed, stained

TEMPERATURE = 0.15

WIDTHS = {"mixed2": 48, "mixed7": 128, "mixed10": 256}


def draw_slide(seed: int, number: int) -> Center:
    """Return the look of a slide of the corpus of ``seed``."""
    rng = np.random.default_rng([seed, number, 1])
    hematoxylin = np.array([0.63, 0.68, 0.31]) + rng.normal(0, 0.07, 3)
    eosin = np.array([0.11, 0.92, 0.24]) + rng.normal(0, 1, 3) * [0.07, 0.06, 0.14]
    amounts = np.exp(rng.normal([-0.02, -0.27], 0.2))
    glass = rng.uniform(232, 250, 3)
    return Center(tuple(hematoxylin), tuple(eosin.clip(0)), amounts[0], amounts[1], tuple(glass), 0.8, 0.0)


def draw_pair(seed: int, index: int, slides: int) -> NDArray[np.uint8]:
    """Return the nuclei of ``index`` on the slides of that number and the next one (2, 96, 96, 3)."""
    rng = np.random.default_rng([seed, index, 0])
    number, area = np.exp(rng.uniform(np.log([2.5, 20]), np.log([26, 85])))
    number = max(1, round(min(number, 1500 / area)))  # more has no room
    areas, irregularity = nuclear_areas(rng, number, area, rng.uniform(0.1, 0.35)), rng.uniform(0.03, 0.13)
    patches = []
    for place in range(2):
        labels = placed(rng, areas, irregularity)
        center = draw_slide(seed, (index + place) % slides)
        patches.append(stained(rng, labels, center, rng.normal(0, 0.03, 2), rng.uniform()))
    return np.stack(patches)


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """Return the cross-entropy of finding each row's partner in the other matrix (n, k) among all 2n − 1 rows."""
    rows = normalize(torch.cat([first, second]).float(), dim=1)
    likeness = (rows @ rows.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    n = len(first)
    return cross_entropy(likeness, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def projection(inputs: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 32))


def train(
    pairs: Tensor, *, epochs: int, seed: int, batch: int = 64, report: Callable[[str], None] = print
) -> tuple[MiniInception, list[tuple[float, float]]]:
    """Train the network on uint8 ``pairs`` (n, 2, 3, 96, 96); return it with each step's losses of nuclei and slide.

    A batch is a run of neighbouring pairs, so that the second patch of one and the first of the next share a slide.
    """
    model = load_mini_inception().to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleDict(
            {
                what: nn.ModuleDict({name: projection(WIDTHS[name]) for name in names})
                for what, names in {"nuclei": ("mixed7", "mixed10"), "slide": tuple(WIDTHS)}.items()
            }
        )
    optimiser = torch.optim.AdamW([*model.parameters(), *heads.parameters()], weight_decay=0.02)
    per_epoch = len(pairs) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=3e-3, total_steps=epochs * per_epoch, pct_start=0.15, cycle_momentum=False
    )
    losses: list[tuple[float, float]] = []
    start = time.perf_counter()
    for epoch in range(epochs):
        shift = int(torch.randint(len(pairs), (), generator=generator))
        for step in torch.randperm(per_epoch, generator=generator):
            rows = (shift + step * batch + torch.arange(batch)) % len(pairs)
            x = normalised(pairs[rows].transpose(0, 1).flatten(0, 1))
            turns = torch.randint(0, 4, (4,), generator=generator)
            x = torch.cat([x[k::4].rot90(int(turn), (2, 3)) for k, turn in enumerate(turns)])
            order = torch.cat([torch.arange(2 * batch)[k::4] for k in range(4)]).argsort()
            x = x[order].contiguous(memory_format=torch.channels_last)
            found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {what: {} for what in heads}
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = model.stem(x)
                for name in LAYER_NAMES:
                    x = model.get_submodule(name)(x)
                    for what in heads:
                        if name in heads[what]:
                            found[what][name] = heads[what][name](x.mean((2, 3))).split(batch)
            nuclei = {name: contrast(one, other) for name, (one, other) in found["nuclei"].items()}
            slide = {name: contrast(other[:-1], one[1:]) for name, (one, other) in found["slide"].items()}
            # The heads of earlier blocks help at half the weight: the last one does not find the slide by itself.
            losses_of = [(name, loss) for part in (nuclei, slide) for name, loss in part.items()]
            total = torch.stack([loss * (1.0 if name == "mixed10" else 0.5) for name, loss in losses_of]).sum()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
            losses.append((nuclei["mixed10"].item(), slide["mixed10"].item()))
        means = np.mean(losses[-per_epoch:], axis=0)
        took = time.perf_counter() - start
        report(f"epoch {epoch + 1}/{epochs}: loss of nuclei {means[0]:.3f}, of slide {means[1]:.3f}, {took:.0f} s")
    return model.eval(), losses


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_280)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=20_001, help="of the corpus and the training")
    parser.add_argument("--out", type=Path, default=Path(mini_inception.__file__).with_name(mini_inception.TISSUE_FILE))
    options = parser.parse_args()
    drawn = np.stack([draw_pair(options.seed, i, options.pairs) for i in range(options.pairs)])
    pairs = torch.from_numpy(drawn).permute(0, 1, 4, 2, 3).contiguous()
    print(f"{len(pairs)} pairs drawn", flush=True)
    model, _ = train(pairs, epochs=options.epochs, seed=options.seed, report=partial(print, flush=True))
    corpus = f"{options.pairs} pairs of generated tissue after the drawings; {options.epochs} epochs"
    save_body(model, options.out, seed=options.seed, corpus=corpus, script="examples/pretrain_on_pairs.py")


if __name__ == "__main__":
    main()
