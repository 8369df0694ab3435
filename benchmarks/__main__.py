"""Prints every benchmark as a table and appends the run to benchmarks/history.json."""

import json
import time
from pathlib import Path

from benchmarks import analysis, mesa, probing, streaming
from benchmarks.machine import gemm_rate
from probe.allocator import keep_freed_memory
from probe.progress import print_table

HISTORY = Path(__file__).with_name("history.json")


def main() -> None:
    """Runs all benchmarks."""
    keep_freed_memory()
    rows = [*mesa.measure(), *probing.measure(), *streaming.measure(), *analysis.measure()]
    shown = [
        (
            str(r["name"]),
            f"{r['ratio']:.2f}",
            f"{r['ours_s']:.3f}",
            f"{r['peer_s']:.3f}",
            str(r["peer"]),
        )
        for r in rows
    ]
    rate = gemm_rate()
    print_table(
        f"Float32 GEMM: {rate:.0f} Gflop/s", ("", "ratio", "ours, s", "peer, s", "peer"), shown
    )
    history = json.loads(HISTORY.read_text()) if HISTORY.exists() else []
    history.append({"date": time.strftime("%Y-%m-%d"), "gemm_gflops": rate, "rows": rows})
    HISTORY.write_text(json.dumps(history, indent=1) + "\n")


if __name__ == "__main__":
    main()
