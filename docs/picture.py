"""Takes the picture in the README: the first screen of a report, as Chromium shows it.

    python docs/picture.py REPORT.html [OUTPUT.png]
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUTPUT = Path(__file__).resolve().parent / "images" / "report.png"
VIEW = {"width": 1280, "height": 780}
COLOURS = 128
LARGEST_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(report: str, output: str | Path = OUTPUT) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = running.new_page(viewport=VIEW, color_scheme="light", reduced_motion="reduce")
        page.goto(Path(report).resolve().as_uri())
        page.wait_for_timeout(500)
        shot = page.screenshot()
        running.close()
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(output, optimize=True)
    size = Path(output).stat().st_size
    print(f"{output}: {size / 1000:.0f} kB")
    if size > LARGEST_BYTES:
        sys.exit(f"more than {LARGEST_BYTES / 1000:.0f} kB; take fewer colours")


if __name__ == "__main__":
    main(*sys.argv[1:])
