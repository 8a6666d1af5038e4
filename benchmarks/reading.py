"""Reading, filtering (5-core) and splitting against a plain polars scan of the same file; time and peak memory.

And the same log compiled once: how long that takes to open.

LOREC_DATA=... python benchmarks/reading.py [rows]     a synthetic log of so many rows (10,000,000) and Amazon Games
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from side_by_side import compare, machine

import lorec
from lorec.sources import open_split, save_split

PEAK = """
import sys, lorec
from lorec.records import peak_memory
lorec.leave_two_out(lorec.read(sys.argv[1]), k_core=5)
print(peak_memory() // 1024**2)
"""


def synthetic(rows: int, folder: Path) -> list[Path]:
    """A million people, 100,000 products by a power law, whole days, in random order; ids are text."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, rows // 10, rows), (rows // 100 * rng.random(rows) ** 3).astype(np.int64)
    days = rng.integers(17_000, 18_500, rows) * 86_400
    frame = pl.DataFrame({"user": users, "item": items, "time": days}).with_columns(
        pl.format("u{}", pl.col("user").cast(pl.String).str.zfill(8)).alias("user"),
        pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(7)).alias("item"),
    )
    frame.write_parquet(folder / "log.parquet")
    frame.write_csv(folder / "log.csv")
    return [folder / "log.parquet", folder / "log.csv"]


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        paths = synthetic(rows, Path(folder))
        if os.environ.get("LOREC_DATA"):
            paths.insert(0, Path(os.environ["LOREC_DATA"]) / "amazon_games" / "interactions.parquet")
        for path in paths:
            scan = pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_csv(path)
            compiled = Path(folder) / f"compiled {path.name} {path.parent.name}"
            save_split(lorec.leave_two_out(lorec.read(path), k_core=5), compiled)
            print(f"\n{path.parent.name if 'games' in str(path) else 'synthetic'} {path.name}")
            found = compare(
                3,
                scan=lambda scan=scan: scan.collect(engine="streaming"),
                read=lambda path=path: lorec.read(path),
                everything=lambda path=path: lorec.leave_two_out(lorec.read(path), k_core=5),
                compiled=lambda compiled=compiled: open_split(compiled),
            )
            peak = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
            ratio = found["everything"] / found["scan"]
            print(f"reading, filtering and splitting takes {ratio:.1f}x the scan; peak {int(peak.stdout):,} MB")
            print(f"opening the compiled log takes {found['compiled'] / found['scan']:.1f}x the scan")


if __name__ == "__main__":
    main()
