"""Draws docs/figures/bench.*.png again, from the records of the benches and without measuring.

python -m experiments.bench.redraw
"""

import json
from pathlib import Path
from typing import Any

from experiments.bench import compute, forward
from experiments.bench.milestones import DAY


def charts(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of the bench that left this record; of most there are none."""
    if record.get("bench") == "forward":
        return forward.figures(record["costs"], record["seconds"])
    if record.get("bench") == "compute":
        year = int(record["date"][:4])
        return compute.figures({name: (year, flops / DAY) for name, flops in record["train_flops"].items()})
    return {}


def main(root: Path) -> None:
    for path in sorted((root / "results").glob("bench.*.json")):
        for name, figure in charts(json.loads(path.read_text("utf-8"))).items():
            target = root / "docs" / "figures" / f"{path.stem}.{name}.png"
            figure.savefig(target, bbox_inches="tight")
            print(f"drew {target.relative_to(root)}")


if __name__ == "__main__":
    main(Path(__file__).parents[2])
