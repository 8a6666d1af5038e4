"""The end-of-run tables of finished run folders as Markdown.

python benchmarks/tables.py runs/a runs/b > tables.md
"""

import sys

import lorec
from lorec.figures import title_of, written

ROWS = (
    "HR@10", "NDCG@10", "T-HR@50", "target rank", "success removed", "ROC-AUC", "PR-AUC", "F1", "recall@1%",
    "weight genuine", "weight fraudsters", "genuine turned down", "best epoch", "seconds an epoch",
)  # fmt: skip


def main() -> None:
    for folder in sys.argv[1:]:
        run = lorec.open_run(folder)
        attack = run.record["config"]["attack"]
        data = run.record["data"]["dataset"]["source"]
        print(f"### {run.config.name}: {attack['name']}, {attack['share']:.0%} fraudsters, seed {run.config.seed}\n")
        print(f"Source {data}; known fakes: {run.record['config']['known'].get('kinds', 'all but the judged kind')}.\n")
        columns = {"popularity": run.scorecard["popularity"]} | run.arms
        print(f"| | {' | '.join(columns)} |")
        print(f"| --- |{' ---: |' * len(columns)}")
        for name in ROWS:
            print(
                f"| {title_of(name)} | {' | '.join(written(name, metrics.get(name)) for metrics in columns.values())} |"
            )
        print()
        for note in run.scorecard["notes"]:
            print(f"- {note}")
        print()


if __name__ == "__main__":
    main()
