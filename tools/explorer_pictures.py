"""Pictures of an explorer page: wide and on a phone, light and dark.

    python tools/explorer_pictures.py explorer.json docs/images/explorer --budget 50%

writes ``docs/images/explorer-wide-light.png`` and so on. It needs Chromium on the path.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from chromium import open_page
from latprune.export import ExplorationRecord
from latprune.report import write_explorer

VIEWS = {"wide": (1280, 900, False), "phone": (375, 800, True)}


def main() -> None:
    """Take the pictures that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exploration", type=Path, help="explorer.json")
    parser.add_argument("pictures", help="beginning of the pictures' names")
    parser.add_argument("--budget", default="50%", help="where the slider stands (default: %(default)s)")
    parser.add_argument("--views", nargs="+", choices=sorted(VIEWS), default=sorted(VIEWS))
    parser.add_argument("--schemes", nargs="+", choices=["light", "dark"], default=["light", "dark"])
    parser.add_argument("--whole", action="store_true", help="the whole page, not what is in view")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_page() as page:
        file = write_explorer(ExplorationRecord.read(args.exploration), Path(folder) / "explorer.html", file="explorer.json")
        for view in args.views:
            width, height, phone = VIEWS[view]
            for scheme in args.schemes:
                page.size(width, height, phone=phone, dark=scheme == "dark")
                page.go(file)
                page.give("typed", args.budget)
                print(page.picture(Path(f"{args.pictures}-{view}-{scheme}.png"), whole=args.whole))
        if page.problems:
            raise SystemExit(f"the page complained: {page.problems}")


if __name__ == "__main__":
    main()
