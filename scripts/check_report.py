"""Open a report in headless Chromium and use it: charts drawn, filters and question browser by clicking.

    python scripts/check_report.py report.html [--chromium /usr/bin/chromium]

Needs a Chromium and the package `playwright` (`pip install playwright`), neither of which the project depends on. Does
the same at 390 and at 1,400 pixels, in light and dark, and prints what it saw. Exit code 1 if something is not as it
should be: a message in the console, a request to the network, a chart without marks, a page wider than the window, a
filter that changes nothing it should, or a generation that became an element of the page.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser (%(default)s)")
    options = parser.parse_args()
    if not options.report.is_file() or options.chromium is None:
        parser.error(f"{options.report} and a --chromium are needed")
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium)
        for width, height in ((390, 844), (1400, 900)):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.on("console", lambda message: wrong.append(f"console: {message.text}"))
                page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
                page.on("request", lambda request: wrong.append(request.url) if "http" in request.url[:4] else None)
                page.goto(options.report.resolve().as_uri())
                print(f"{width} px, {scheme}: {look(page, wrong)}")
                page.close()
        browser.close()
    print(f"{options.report}: {options.report.stat().st_size / 1e6:.1f} MB")
    for each in wrong:
        print(f"WRONG  {each}", file=sys.stderr)
    return 1 if wrong else 0


def look(page: Page, wrong: list[str]) -> str:
    """Use the page; add to `wrong` what is not as it should be; say what was seen."""
    expect = lambda holds, what: None if holds else wrong.append(what)  # noqa: E731
    charts = page.locator("figure svg")
    for i in range(charts.count()):
        marks = charts.nth(i).locator("polyline, rect").count()
        expect(marks > 0 and charts.nth(i).bounding_box()["height"] > 50, f"chart {i} is empty")
    lines = page.locator("svg[data-axes]").first
    lines.scroll_into_view_if_needed()
    lines.hover()
    readout = lines.locator("xpath=..").locator(".readout").inner_text()
    expect(readout, "no values under the pointer")
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    expect(not wide, "the page is wider than the window")
    return f"{charts.count()} charts, under the pointer: {readout[:60]!r}; {browse(page, expect)}"


def browse(page: Page, expect) -> str:
    """Click through the questions."""
    shown = lambda: page.locator("#count").inner_text()  # noqa: E731
    total = shown()
    for run in page.locator("#run option").all_inner_texts():
        page.select_option("#run", run)
        expect(page.locator("#list > details").count() > 0, f"no question of {run} is shown")
    sets = page.locator("#set option").all_inner_texts()
    seen = []
    for name in sets:
        page.select_option("#set", name)
        seen.append(f"{name}: {shown()}")
        for box in ("wrong", "flipped"):
            if page.locator(f"#{box}").is_enabled():
                before = shown()
                page.check(f"#{box}")
                seen.append(f"{box} {shown()}")
                badges = page.locator(f"#list > details > summary > .badge:text-is('{box}')").count()
                expect(badges == page.locator("#list > details").count(), f"{name}: not all that is shown is {box}")
                page.uncheck(f"#{box}")
                expect(shown() == before, f"{name}: {box} cannot be undone")
    page.fill("#text", "no text is like this one")
    expect(page.locator("#list > details").count() == 0, "a search for nothing finds something")
    page.fill("#text", "")
    expect(page.locator("#list > details").count() > 0, f"no question is shown ({total})")
    page.locator("#list > details > summary").first.click()
    page.locator("#list > details .about").first.wait_for()
    visits = page.locator("#list > details").first.locator("details > summary")
    visits.first.click()
    page.locator("#list .sample pre").first.wait_for()
    inside = page.locator("#list pre *").count()
    expect(inside == 0, f"{inside} elements came out of a text")
    return f"{'; '.join(seen)}; {visits.count()} visits of the first"


if __name__ == "__main__":
    sys.exit(main())
