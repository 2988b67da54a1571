"""Open a report in headless Chromium and use it: take pictures of it, and use every control.

    python scripts/check_report.py report.html [--pictures FOLDER] [--widths 390,1000,1600] [--chromium PATH]

Needs a Chromium and the package `playwright` (`pip install playwright`), neither of which the project depends on. It
uses the page at each width, in light and in dark, which takes a minute or two each, and prints what it saw. The exit
code is 1 if something is not as it should be: a message in the console, a request to the network, a chart without
marks, a page wider than the window, a control that does not do what it says, or a response that became an element of
the page.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

BUTTONS = {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}  # none sends anything away
HEIGHT = 900  # of the window, in pixels
FILTERS = {"wrong": "wrong", "became_right": "became right", "became_wrong": "became wrong"}  # with badges of that name


class Check:
    """One opening of the page; `wrong` gets what is not as it should be."""

    def __init__(self, page: Page, wrong: list[str], pictures: Path | None, name: str):
        self.page, self.wrong, self.pictures, self.name = page, wrong, pictures, name

    def picture(self, of: str, *, whole: bool = False) -> None:
        if self.pictures:
            self.page.screenshot(path=self.pictures / f"{self.name}_{of}.png", full_page=whole)

    def expect(self, holds: object, what: str) -> None:
        if not holds:
            self.wrong.append(f"{self.page.viewport_size['width']} px: {what}")

    def charts(self) -> int:
        """See that every chart is drawn, in all that can be opened."""
        page = self.page
        page.wait_for_function("typeof Plotly !== 'undefined'")
        page.evaluate(
            "document.querySelectorAll('section:not(#browser) details').forEach((each) => { each.open = true; })"
        )
        plots = page.locator(".plot")
        for i in range(plots.count()):
            plots.nth(i).scroll_into_view_if_needed()
            plots.nth(i).locator(".main-svg").first.wait_for()
            marks = plots.nth(i).locator(".scatterlayer path, .barlayer path, .scatterlayer .point").count()
            self.expect(marks > 0, f"chart {plots.nth(i).get_attribute('data-chart')} is empty")
        return plots.count()

    def smoothing(self) -> None:
        """Every way to smooth changes the lines."""
        page = self.page
        if not page.locator("#smooth").count():
            return
        plot = page.locator("#training .plot").first
        plot.scroll_into_view_if_needed()
        shapes = set()
        ways = page.locator("#smooth option").evaluate_all("all => all.map((each) => each.value)")
        for way in ways:
            page.select_option("#smooth", way)
            shapes.add(
                " ".join(
                    plot.locator(".scatterlayer path.js-line").evaluate_all(
                        "all => all.map((p) => p.getAttribute('d'))"
                    )
                )
            )
        page.select_option("#smooth", ways[0])
        steps = plot.evaluate("box => Math.max(...box.data.map((trace) => trace.x.length))")
        self.expect(len(shapes) == len(ways) or steps < 62, f"{len(ways)} ways to smooth, {len(shapes)} shapes")

    def hover_and_legend(self) -> str:
        """What stands under the pointer, for all lines at once; a click on a name hides its line."""
        plot = self.page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        box = plot.locator(".nsewdrag").first.bounding_box()
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        label = plot.locator(".hoverlayer .legend, .hoverlayer .hovertext").first
        label.wait_for()
        said = label.text_content()
        buttons = plot.locator(".modebar-btn").evaluate_all("all => all.map((each) => each.dataset.title)")
        self.expect(set(buttons) == BUTTONS, f"the buttons of a chart are {buttons}")
        entries = plot.locator(".legendtoggle")
        if entries.count() > 1:
            count = lambda: plot.locator(".scatterlayer .trace").count()  # noqa: E731
            before = count()
            entries.first.click()
            self.page.wait_for_timeout(600)
            self.expect(count() < before, "a click in the legend hides nothing")
            entries.first.click()
            self.page.wait_for_timeout(600)
        return said

    def theme(self) -> None:
        back = lambda: self.page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
        before = back()
        self.page.click("#theme")
        self.expect(back() != before, "the theme does not change")
        self.page.click("#theme")
        self.expect(back() == before, "the theme does not change back")

    def questions(self) -> str:
        """Use the question browser."""
        page = self.page
        if not page.locator("#list").count():
            return "no questions"
        rows = page.locator("#list > details")
        shown = lambda: page.locator("#count").inner_text()  # noqa: E731
        seen = []
        for run in page.locator("#run option").all():
            page.select_option("#run", run.get_attribute("value"))
            self.expect(rows.count() > 0, f"no question of {run.inner_text()} is shown")
        for name in page.locator("#set option").evaluate_all("all => all.map((each) => each.value)"):
            page.select_option("#set", name)
            seen.append(f"{name}: {shown()}")
            self.filters(rows, seen)
            self.sorting(rows)
        page.fill("#text", "no text is like this one")
        self.expect(rows.count() == 0, "a search for nothing finds something")
        page.fill("#text", "")
        self.expect(rows.count() > 0, "no question is shown")
        self.more(rows)
        self.one(rows)
        return "; ".join(seen)

    def filters(self, rows: Locator, seen: list[str]) -> None:
        page, before = self.page, self.page.locator("#count").inner_text()
        boxes = page.locator("#browser input[type=checkbox]:not(#math)")
        for i in range(boxes.count()):
            box = boxes.nth(i)
            name = box.get_attribute("id")
            count = int(page.locator(f"#{name}_count").inner_text())
            self.expect(box.is_enabled() == (count > 0), f"{name}: {count}, and yet {box.is_enabled()}")
            if count == 0:
                continue
            box.check()
            after = page.locator("#count").inner_text()
            self.expect(after.startswith(f"{count} of "), f"{name}: {after}, not {count}")
            if name in FILTERS:
                badges = page.locator(f"#list > details > summary .badge:text-is('{FILTERS[name]}')").count()
                self.expect(badges == rows.count(), f"not all that is shown is {FILTERS[name]}")
            seen.append(f"{name} {count}")
            box.uncheck()
            self.expect(page.locator("#count").inner_text() == before, f"{name} cannot be undone")

    def sorting(self, rows: Locator) -> None:
        page = self.page
        by = "Array.from(document.querySelectorAll('#list > details'), (row) => "
        by += "[...views].find(([, view]) => view === row)[0])"
        for name in page.locator("#sort option").evaluate_all("all => all.map((each) => each.value)"):
            page.select_option("#sort", name)
            for sign in (1, -1):
                if name != "order":
                    values = page.evaluate(f"{by}.map((question) => question['{name}'])")
                    ordered = sorted(values, reverse=sign < 0)
                    self.expect(values == ordered, f"sorted by {name}, {sign}: {values[:5]}")
                page.click("#order")
        page.select_option("#sort", "order")

    def more(self, rows: Locator) -> None:
        page, before = self.page, rows.count()
        if page.locator("#more").is_visible():
            page.click("#more")
            self.expect(rows.count() > before, "more shows no more")

    def one(self, rows: Locator) -> None:
        """Open a question, a ballot and an answer; follow the question's link."""
        page = self.page
        rows.first.locator("summary").first.click()
        answers = rows.first.locator(".visit[open] .answer > summary")
        answers.first.wait_for()
        answers.first.click()
        rows.first.locator(".sample pre").first.wait_for()
        page.evaluate("document.querySelector('#browser').scrollIntoView()")
        self.picture("question")
        inside = page.locator("#list pre *:not(math, math *, span)").count()
        self.expect(inside == 0, f"{inside} elements came out of a text")
        if (formulas := page.locator("#list math").count()) > 0:
            page.uncheck("#math")
            self.expect(page.locator("#list math").count() == 0, f"{formulas} formulas cannot be turned off")
            page.check("#math")
            rows.first.locator("summary").first.click()
        page.locator("#list > details[open] a").first.click()
        page.wait_for_timeout(500)  # the page follows a link when the browser has told it
        self.expect(
            rows.count() == 1 and page.locator("#count").inner_text().startswith("1 of"), "a link shows no one question"
        )
        page.locator("#list > details[open]").first.wait_for()
        page.click("#all")
        self.expect(
            rows.count() > 1 or page.locator("#count").inner_text().startswith("1 of 1 "), "no way back from a link"
        )
        page.check("#browser input[type=checkbox]:enabled:not(#math) >> nth=0") if page.locator(
            "#browser input[type=checkbox]:enabled:not(#math)"
        ).count() else None
        before = page.locator("#count").inner_text()
        page.click("#view")
        self.expect(page.locator("#count").inner_text() == before, "the link to the list shows another list")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser (%(default)s)")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the page; without it none are taken")
    parser.add_argument("--widths", default="390,1000,1600", help="of the window, in pixels (%(default)s)")
    options = parser.parse_args()
    if not options.report.is_file() or options.chromium is None:
        parser.error(f"{options.report} and a --chromium are needed")
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium)
        for width in map(int, options.widths.split(",")):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
                page.on("console", lambda message: wrong.append(f"console: {message.text}"))
                page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
                page.on("request", lambda request: wrong.append(request.url) if "http" in request.url[:4] else None)
                page.goto(options.report.resolve().as_uri())
                print(f"{width} px, {scheme}: {look(page, wrong, options.pictures, f'{width}_{scheme}')}", flush=True)
                page.close()
        browser.close()
    print(f"{options.report}: {options.report.stat().st_size / 1e6:.1f} MB")
    for each in wrong:
        print(f"WRONG  {each}", file=sys.stderr)
    return 1 if wrong else 0


def look(page: Page, wrong: list[str], pictures: Path | None, name: str) -> str:
    """Use the page; add to `wrong` what is not as it should be; say what was seen."""
    check = Check(page, wrong, pictures, name)
    page.wait_for_function("typeof Plotly !== 'undefined'")
    page.wait_for_timeout(1000)
    check.picture("first")
    wide = "document.documentElement.scrollWidth > window.innerWidth"
    check.expect(not page.evaluate(wide), "the page is wider than the window")
    drawn = check.charts()
    check.expect(not page.evaluate(wide), "the page with all charts is wider than the window")
    check.smoothing()
    said = check.hover_and_legend() if drawn else ""
    check.theme()
    seen = check.questions()
    check.expect(not page.evaluate(wide), "the page with a question is wider than the window")
    check.picture("all", whole=True)
    return f"{drawn} charts, under the pointer: {said[:80]!r}; {seen}"


if __name__ == "__main__":
    sys.exit(main())
