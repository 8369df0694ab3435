"""`python -m benchmarks.growth` measures; `--page` writes docs/growth.md from the file."""

import argparse
import json
from pathlib import Path

MEASURED = Path(__file__).parents[1] / "growth.json"


def main() -> None:
    """Measures or writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--budget-minutes", type=float, default=20.0, help="for all points")
    parser.add_argument("--page", action="store_true", help="write docs/growth.md, measure nothing")
    parser.add_argument("--file", type=Path, default=MEASURED)
    asked = parser.parse_args()
    if asked.page:
        from benchmarks.growth.page import write

        if not asked.file.exists():
            parser.error(f"{asked.file}: nothing measured yet; `make growth` measures")
        print(write(json.loads(asked.file.read_text())))
        return
    from benchmarks.growth.measure import measure

    measure(
        asked.budget_minutes,
        lambda measured: asked.file.write_text(json.dumps(measured, indent=1) + "\n"),
    )
    print(asked.file)


if __name__ == "__main__":
    main()
