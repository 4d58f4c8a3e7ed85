"""Take the picture of a finished job's page that the README shows (docs/pictures/job.png).

    python -m benchmarks.page_picture                                     about 3 minutes on 2 cores

The script needs Chromium and playwright. It runs the job of `make demo`, and opens the job's page on a local server.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.demo import compress
from benchmarks.serving import serving

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "job.png"
WIDTH, HEIGHT = 1280, 960


def main() -> int:
    """Run the job, and write the picture. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32, help="policies to try")
    options = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        print("There is no Chromium. Install it: apt-get install chromium", file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vitfit-picture-") as folder, serving(Path(folder)) as address:
        job = compress(address, options.trials, Path(folder) / "files")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(f"{address}/#/jobs/{job.id}")
            page.wait_for_selector("[data-finished=succeeded]")
            page.screenshot(path=str(PICTURE))
            browser.close()
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
