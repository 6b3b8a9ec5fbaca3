"""The scores of runs as a Markdown table: python benchmarks/results_table.py RUN ... [--scores accuracy,bleu]"""

import argparse

from simvlm_jax.run.directory import RunDir

HEADLINES = (
    "accuracy",
    "accuracy_in_list",
    "accuracy_out_of_list",
    "f1",
    "bleu",
    "exact",
    "scene_accuracy",
    "coverage",
    "cider",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--scores", default=",".join(HEADLINES))
    args = parser.parse_args()
    print("| run | suite · split | scores | blind | constant |\n|---|---|---|---|---|")
    for path in args.runs:
        run = RunDir(path)
        entries = {(e["suite"], e["split"], e["control"]): e["scores"] for e in run.results()["entries"]}
        for suite, split, control in entries:
            if control:
                continue
            shown = [n for n in args.scores.split(",") if n in entries[suite, split, None]]
            cells = []
            for name in (None, "blind", "constant"):
                scores = entries.get((suite, split, name), {})
                cells.append(", ".join(f"{n.replace('_', ' ')} {scores[n]:.3f}" for n in shown if n in scores) or "–")
            print(f"| {run.path.name} | {suite} · {split} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
