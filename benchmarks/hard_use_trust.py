"""Files of strangers: nothing in them is run, and nothing outside their folder is read."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hard_use_bench import _anew, _bench, _fork, _wait

_EVIL = "from pathlib import Path\nPath({canary!r}).touch()\ndef make():\n    raise SystemExit(99)\n"


def trust(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Open what strangers made, each file of which would write a canary if any of its code were run."""
    import h5py
    from hard_use_files import stranger

    bench = _bench(work)
    place = work / "trust"
    _anew(place)
    canary = place / "canary"
    (work / "evil.py").write_text(_EVIL.format(canary=str(canary)))  # in the folder that commands run in
    out = str(place / "out")
    table = ["--table", str(bench / "patches.csv")]
    extract = ["extract", *table, "--layer", "mixed0", "--device", "cpu", "--out", f"{out}.h5"]
    tries: dict[str, list[str]] = {}

    for name in ("weights.pt", "weights.pth", "weights.bin", "weights.safetensors"):
        (place / name).write_bytes(stranger(canary))
        tries[f"pickle as {name}"] = [
            *extract[:-1],
            f"{out}-w.h5",
            "--model",
            "test_resnet",
            "--weights",
            str(place / name),
        ]
    for name in ("features.npy", "features.h5", "features.parquet"):
        (place / name).write_bytes(stranger(canary))
        tries[f"pickle as {name}"] = ["probe", *table, "--features", str(place / name), "--out", f"{out}-{name}"]
    odd = np.empty(48, dtype=object)
    odd[:] = [_Touches(str(canary))] * 48
    np.save(place / "objects.npy", odd, allow_pickle=True)
    tries["array of objects"] = ["probe", *table, "--features", str(place / "objects.npy"), "--out", f"{out}-objects"]
    (place / "images.csv").write_text(f"image,mask\n{bench / '0.png'},objects.npy\n")
    tries["mask of objects"] = ["measure", str(place / "images.csv"), "--patch-size", "32", "--out", f"{out}-m.csv"]
    reference = ["--export", "png", "--stain", "reinhard", "--stain-reference", str(place / "objects.npy")]
    tries["stain reference of objects"] = [
        "tile",
        str(bench / "slide.svs"),
        "--size",
        "512",
        *reference,
        "--out",
        f"{out}-t.csv",
    ]

    tries |= _named_code(bench, place, out, table, extract)

    for kind in ("external link", "external data", "virtual data"):
        store, victim = place / f"{kind.replace(' ', '-')}.h5", place / f"{kind.replace(' ', '-')}-victim.h5"
        shutil.copy(bench / "store.h5", store)
        shutil.copy(bench / "store.h5", victim)
        _refer(store, victim, kind)
        with h5py.File(victim, "r+") as file:
            file["stamps"][:] = b"theirs"
        tries[f"store with {kind}"] = [*extract[:-1], str(store), "--model", "mini_inception"]

    rows: Counter[str] = Counter()
    before = {p: p.read_bytes() for p in place.glob("*victim.h5")}
    for name, argv in tries.items():
        code, said = _wait(_fork(argv, work)), (work / "said").read_text()
        run = canary.exists()
        canary.unlink(missing_ok=True)
        changed = [p.name for p, content in before.items() if p.read_bytes() != content]
        bad = run or code != 2 or "Traceback" in said or bool(changed)
        rows["tried"] += 1
        rows["refused in a sentence"] += code == 2 and "Traceback" not in said
        rows["code run"] += run
        rows["other files changed"] += bool(changed)
        if bad:
            print(f"  {name}: exit {code}, run {run}, changed {changed}: {said.strip()[-300:]}", flush=True)
    (work / "evil.py").unlink()
    escaped = _fork_and_tell(lambda: _escapes(work, bench, place), work)
    downloads = _fork_and_tell(lambda: _downloads(work, place), work)
    return [{"what": "files of strangers", **rows, "detail": ""}, *escaped, *downloads]


class _Touches:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def _fork_and_tell(make: Callable[[], Any], work: Path) -> Any:
    """Return what a function gives that computes, in a process of its own: this one must stay fit to be forked."""
    child = os.fork()
    if child == 0:
        try:
            (work / "told.json").write_text(json.dumps(make()))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    if _wait(child):
        raise SystemExit("a part failed; see above.")
    return json.loads((work / "told.json").read_text())


def _escapes(work: Path, bench: Path, place: Path) -> list[dict[str, Any]]:
    """Report on a table all of whose names are markup, and count what of them became markup."""
    from html.parser import HTMLParser

    import pandas as pd

    import conceptkit as ck
    from conceptkit.commands.report import write_report

    nasty = '"><script>run()</script><img src=x onerror=run()>'
    frame = pd.read_csv(bench / "patches.csv").rename(
        columns={"count": f"</script>{nasty}", "area": "=1+1\\input{/etc/passwd}"}
    )
    frame["h5"] = str(bench / "patches.h5")
    frame["center"] = [f"{nasty}{v}" for v in frame["center"]]
    frame["patient"] = [f"=cmd|' /C calc'!A0 {nasty}{v}" for v in frame["patient"]]
    frame["label"] = [f"</script>{nasty}{v}" for v in frame["label"]]
    frame["patch_id"] = [f"{nasty}{v}" for v in frame["patch_id"]]
    folder = place / "nasty"
    folder.mkdir()
    frame.to_csv(folder / "patches.csv", index=False)
    concepts = [f"</script>{nasty}", "=1+1\\input{/etc/passwd}"]
    study = ck.Study(
        name=nasty,
        table=folder / "patches.csv",
        model="mini_inception",
        layers=("mixed0",),
        concepts=tuple(concepts),
        group="patient",
        units={concepts[0]: nasty},
    )
    ck.run_probe(study, permutations=0, folds=2, out=folder / "probe")
    options = {"epochs": 1, "warmup": 0, "trunk": (8,), "unfreeze": ()}
    ck.run_guide(study, encourage=[concepts[0]], discourage=["center"], **options, folds=2, out=folder / "guide")
    plain = write_report([bench / "probed", bench / "guided"], folder / "plain.html")
    page = write_report(
        [folder / "probe", folder / "guide"], folder / "page.html", latex=folder / "latex", csv=folder / "csv"
    )

    class Count(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: Counter[str] = Counter()
            self.handlers = 0

        def handle_starttag(self, tag: str, attributes: Any) -> None:
            self.tags[tag] += 1
            self.handlers += sum(name.startswith("on") for name, _ in attributes)

    found = {}
    for name, path in (("plain", plain), ("nasty", page)):
        found[name] = Count()
        found[name].feed(path.read_text(encoding="utf-8"))
    more = found["nasty"].tags["script"] - found["plain"].tags["script"]
    tex = "".join(p.read_text() for p in (folder / "latex").glob("*.tex"))
    cells = [c for p in (folder / "csv").glob("*.csv") for row in csv.reader(p.open(newline="")) for c in row]
    formulas = sum(cell[:1] in tuple("=+@") and not _a_number(cell) for cell in cells)
    nothing = {"refused in a sentence": "", "other files changed": ""}
    page_says = f"{more:+d} script elements, {found['nasty'].handlers} handlers"
    table_says = f"{formulas} cells of CSV that a spreadsheet would take for formulas"
    return [
        {"what": "a page of markup", "tried": 1, **nothing, "code run": found["nasty"].handlers, "detail": page_says},
        {
            "what": "tables of markup",
            "tried": len(cells),
            **nothing,
            "code run": tex.count("\\input{"),
            "detail": table_says,
        },
    ]


def _a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _downloads(work: Path, place: Path) -> list[dict[str, Any]]:
    """Open a published network from a hub's cache that is whole, and from one whose weights were exchanged."""
    import timm
    import torch
    from huggingface_hub import constants
    from safetensors.torch import save_file

    from conceptkit.errors import InputError
    from conceptkit.models.backbones import open_backbone

    constants.HF_HUB_CACHE = str(place / "hub")
    os.environ["HF_HUB_CACHE"] = constants.HF_HUB_CACHE
    config = timm.get_pretrained_cfg("test_resnet")
    repository = Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("0" * 40)
    for folder in (blobs, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in timm.create_model("test_resnet").state_dict().items()}
    save_file(state, place / "published.safetensors", metadata={"format": "pt"})
    content = (place / "published.safetensors").read_bytes()
    blob = blobs / hashlib.sha256(content).hexdigest()
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    rows = []
    for name, written in (("as published", content), ("one bit other", content[:-1] + bytes([content[-1] ^ 1]))):
        blob.write_bytes(written)
        try:
            opened = open_backbone("test_resnet").weights
        except InputError as error:
            opened = str(error)
        refused = {"refused in a sentence": int("not what was" in opened), "other files changed": "", "code run": 0}
        rows.append({"what": f"download {name}", "tried": 1, **refused, "detail": opened[-60:]})
    return rows


def _named_code(bench: Path, place: Path, out: str, table: list[str], extract: list[str]) -> dict[str, list[str]]:
    """Return calls with checkpoints and study files that name code to run."""
    tries: dict[str, list[str]] = {}
    guided = bench / "guided" / "checkpoints" / "guided-seed0"
    for named in ("evil:make", "os:getcwd", "builtins:breakpoint", "os:abort"):
        folder = place / f"checkpoint-{named.replace(':', '-')}"
        shutil.copytree(guided, folder)
        description = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**description, "architecture": named}))
        model = ["--model", str(folder)]
        tries[f"checkpoint of {named}, predict"] = ["predict", str(folder), *table, "--out", f"{out}.csv"]
        tries[f"checkpoint of {named}, layers"] = ["layers", *model]
        tries[f"checkpoint of {named}, extract"] = [*extract, *model]
        tries[f"checkpoint of {named}, guide"] = ["guide", *table, *model, "--encourage", "count", "--dry-run"]
        tries[f"checkpoint of {named}, audit"] = [
            "audit",
            str(folder),
            *table,
            "--concept",
            "count",
            "--out",
            f"{out}-a",
        ]
        for key, more in (("evil", ""), ("folder", f"@{folder}")):
            study = place / f"{key}-{named.replace(':', '-')}.toml"
            study.write_text((bench / "conceptkit.toml").read_text().replace("mini_inception", named + more))
            for part in ("patches.csv", "patches.h5"):
                shutil.copy(bench / part, place / part)
            for command in (["probe", "--out", f"{out}-p"], ["guide", "--out", f"{out}-g", "--dry-run"]):
                tries[f"study of {named}{more[:1]}, {command[0]}"] = [*command, "--study", str(study)]
    return tries


def _refer(store: Path, victim: Path, kind: str) -> None:
    """Make the stamps of a store a reference to those of another file."""
    import h5py

    with h5py.File(store, "r+") as file:
        file["state"][:] = 0
        stamps = file["stamps"][:]
        if kind == "external link":
            del file["stamps"]
            file["stamps"] = h5py.ExternalLink(str(victim), "/stamps")
        elif kind == "external data":
            del file["stamps"]
            file.create_dataset("stamps", stamps.shape, stamps.dtype, external=[(str(victim), 0, stamps.nbytes)])
        else:
            layout = h5py.VirtualLayout(stamps.shape, stamps.dtype)
            layout[:] = h5py.VirtualSource(str(victim), "stamps", stamps.shape)
            del file["stamps"]
            file.create_virtual_dataset("stamps", layout)
