"""Probe, guide and report on the embedded study: what ``conceptkit demo`` does, in Python.

Run folders go to ``runs/`` and the page to ``report.html``, both in the current folder; no network and no download is
needed. The tissue is synthetic: the numbers show how the tools work and do not describe pathology.
"""

import conceptkit as ck


def main() -> None:
    study = ck.embedded_study()
    probed = ck.run_probe(study, layers=["mixed2", "mixed7", "mixed10"], concepts=["count", "area", "center"])
    columns = ["layer", "concept", "metric", "score", "score_low", "score_high", "score_random_network"]
    print(probed.to_frame()[columns].round(2).to_string(index=False))

    guided = ck.run_guide(study, encourage=["area", "count"], discourage=["center"], seeds=[0])
    for run in guided.runs:
        print(f"{run.name}, seed {run.seed}")
        print("  main task AUC", {split: round(scores["auc"], 3) for split, scores in run.metrics.items()})
        print("  fresh probes ", {name: scores["probe"] for name, scores in run.concepts.items()})
        print("  leakage      ", dict(run.leakage))
    for d in guided.differences:
        print(f"{d.run} - {d.against}, {d.split}, {d.metric}: {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})")

    print("report:", ck.write_report([probed, guided], "report.html"))


if __name__ == "__main__":
    main()
