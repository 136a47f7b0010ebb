"""Is the canvas quick with 200 rows and 5,000 LoRA files, and what does the pack add to a start?

A real ComfyUI, headless Chromium, both renderers. An interaction lasts from the time stamp of its
input event to the second animation frame after it, when the first has been painted; where something
is awaited (a list from the server, an undo), to the second frame after that is there. "nothing" is
a key that does nothing, two frames of the page as it is. Opening a workflow and undo build the node
anew; the same with one row is what the frontend takes, and the bar is for what 200 rows add.

A start lasts from the process to its answer to GET /object_info; a page from its address to its
registered nodes; with and without the pack and the files, interleaved. Figures are milliseconds;
the median counts, and on a busy machine look at the least.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from lora_workbench.tests.lora_files import unet_modules, write_lora
from lora_workbench.tests.web.browser import READY, chromium, opened, wait_until_ready
from lora_workbench.tests.web.comfyui_server import make_base, running

from harness import Timings, machine

ROWS, FILES, FOLDERS = 200, 5_000, 50
MIDDLE = ROWS // 2
INTERACTION_BAR, PICKER_BAR, START_BAR = 50, 150, 300  # milliseconds

PAGE = """() => {
    const shownRows = () => document.querySelectorAll(".lw-row").length
    const found = () => document.querySelector(".lw-found li") !== null
    const tracker = () => app.extensionManager.workflow.activeWorkflow.changeTracker
    // From an event to the second frame once `isThere()`.
    function measure(type, isThere) {
        window.took = new Promise((done) => addEventListener(type, ({ timeStamp }) => {
            requestAnimationFrame(() => secondFrame(timeStamp, isThere, done))
        }, { capture: true, once: true }))
    }
    function secondFrame(start, isThere, done) {
        requestAnimationFrame(() => isThere()
            ? done(performance.now() - start)
            : requestAnimationFrame(() => secondFrame(start, isThere, done)))
    }
    // The same for what a page does by itself.
    async function measureCall(call, isThere) {
        const start = performance.now()
        await call()
        return new Promise((done) =>
            requestAnimationFrame(() => secondFrame(start, isThere, done)))
    }
    Object.assign(window, { shownRows, found, tracker, measure, measureCall })
}"""
WORKFLOW = """async (rows) => {
    app.graph.clear()
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
    const node = LiteGraph.createNode("LoraWorkbenchApply")
    node.pos = [300, 60]
    app.graph.add(node)
    node.widgets.find(({ name }) => name === "rows").value = JSON.stringify(rows)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    window.workflow = JSON.stringify(app.graph.serialize())
    app.graph.clear()
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
}"""
OPEN = """(count) => measureCall(
    () => app.loadGraphData(JSON.parse(window.workflow)), () => shownRows() === count)"""
UNDO = "(count) => measureCall(() => tracker().undo(), () => shownRows() === count)"
VERDICTS = """() => document.querySelectorAll(".lw-verdict[data-level]").length"""


class Canvas:
    """A page whose interactions are timed."""

    def __init__(self, frontend, timings):
        self.frontend, self.page, self.timings = frontend, frontend.page, timings

    def timed(self, name, event, act, is_there="() => true"):
        """Time one interaction; ``act()`` makes the input."""
        self.page.evaluate(f"(type) => measure(type, {is_there})", event)
        act()
        self.note(name, self.page.evaluate("() => window.took"))

    def note(self, name, milliseconds):
        """Keep what the page measured."""
        self.timings.seconds.setdefault(name, []).append(milliseconds / 1e3)

    def rest(self):
        """Let what was started come to an end."""
        self.page.wait_for_timeout(150)

    def key(self, name, key, event="keydown", is_there="() => true"):
        """Press a key, then rest."""
        self.timed(name, event, lambda: self.page.keyboard.press(key), is_there)
        self.rest()

    def click(self, name, label, role="button"):
        """A click on the element of this label in the middle of the list."""
        element = self.page.locator(".lw-rows").get_by_role(role, name=label, exact=True).first
        element.scroll_into_view_if_needed()
        self.rest()
        self.timed(name, "click", element.click)
        self.rest()


def edit_rows(canvas, names):
    """Open 200 rows, then each interaction once."""
    page, name = canvas.page, names[MIDDLE]
    rows = [{"name": each} for each in names]
    for count in (1, ROWS):
        page.evaluate(WORKFLOW, rows[:count])
        canvas.note(f"open {count} rows", page.evaluate(OPEN, count))
        wait_for(page, f"({VERDICTS})() === {count}")
        duplicate_and_undo(canvas, names[min(MIDDLE, count - 1)], count)
    canvas.key("nothing", "Shift")
    page.locator(".lw-rows").hover()
    canvas.timed("scroll", "wheel", lambda: page.mouse.wheel(0, 400))
    canvas.rest()
    canvas.click("toggle a row", f"{name} on", "checkbox")
    canvas.click("solo", f"Solo {name}: only this one on")
    canvas.click("all on", "All LoRAs on", "checkbox")
    strength(canvas, name)
    page.locator(".lw-rows").get_by_role("button", name=f"Reorder {name}").focus()
    canvas.key("reorder", "Alt+ArrowUp")
    canvas.click("remove", f"Remove {name}")


def duplicate_and_undo(canvas, name, count):
    canvas.click("duplicate" if count == ROWS else "duplicate 1 row", f"Duplicate {name}")
    canvas.note(f"undo, {count} rows", canvas.page.evaluate(UNDO, count))
    canvas.rest()


def strength(canvas, name):
    page = canvas.page
    field = page.get_by_role("spinbutton", name=f"Strength of {name}", exact=True)
    field.scroll_into_view_if_needed()
    field.focus()
    canvas.rest()
    canvas.key("strength: an arrow", "ArrowUp")
    page.keyboard.press("Control+a")
    canvas.key("strength: a typed digit", "2")
    canvas.key("strength: Enter", "Enter")
    box = field.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 8, y)
    for step in range(3, 6):
        move = (x + 8 * step, y)
        canvas.timed(
            "strength: a step of a drag", "pointermove", lambda to=move: page.mouse.move(*to)
        )
    canvas.timed("strength: end of a drag", "pointerup", page.mouse.up)
    canvas.rest()


def search_files(canvas):
    """Open the picker, search for a file key by key, close it."""
    page = canvas.page
    page.locator(".lw-add").first.focus()
    canvas.key("picker: first results", "Enter", is_there="found")
    for key in "style 42":
        canvas.key("picker: a key of a search", key, event="input", is_there="found")
    canvas.key("picker: down", "ArrowDown")
    page.keyboard.press("Escape")
    canvas.rest()


def wait_for(page, expression):
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    sys.exit(f"This never came: {expression}")


def fill(folder):
    """5,000 small LoRA files in folders; returns their names."""
    first = folder / "first.safetensors"
    write_lora(first, unet_modules("sd15")[:4])
    content = first.read_bytes()
    first.unlink()
    names = [f"folder {n % FOLDERS:02}/style {n:04}.safetensors" for n in range(FILES)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return names


def start_up(browser, base, kind, timings):
    """One start of the server, and one of a page that has nothing in its cache."""
    with running(base) as server:
        timings.seconds.setdefault(f"server, {kind}", []).append(server.seconds)
        frontend = opened(browser, server.url)
        while not frontend.page.evaluate(READY):
            frontend.page.wait_for_timeout(20)
        seconds = frontend.page.evaluate("() => performance.now()") / 1e3
        timings.seconds.setdefault(f"page, {kind}", []).append(seconds)
        frontend.page.context.close()
    (base / "server.log").unlink()


def start_ups(browser, folder, repetitions):
    """With and without pack and files, interleaved."""
    timings = Timings()
    bases = {}
    for count in (0, FILES):
        for pack in ("core", "pack"):
            base = bases[f"{pack}, {count} files"] = folder / f"{pack}-{count}"
            loras = make_base(base, with_pack=pack == "pack")
            if count:
                fill(loras)
    for _ in range(repetitions):
        for kind, base in bases.items():
            start_up(browser, base, kind, timings)
    for name in timings.seconds:
        line(timings, name)
    return [added(timings, what, count) for count in (0, FILES) for what in ("server", "page")]


def added(timings, what, count):
    with_pack, without = (
        timings.seconds[f"{what}, {kind}, {count} files"] for kind in ("pack", "core")
    )
    differences = [1e3 * (a - b) for a, b in zip(with_pack, without, strict=True)]
    least = 1e3 * (min(with_pack) - min(without))
    median = statistics.median(differences)
    print(f"  {what}, {count} files: the pack adds {median:.0f} (least - least {least:.0f})")
    return verdict(f"{what}, {count} files", median, START_BAR)


def line(timings, name):
    print(f"  {name:28} {timings.spread(name):>20}")


def median_of(timings, name):
    return 1e3 * statistics.median(timings.seconds[name])


def verdict(name, value, bar):
    """Print how a bar was met; false where it was missed."""
    is_met = value <= bar
    print(f"    bar {name}: {bar} ms {'met' if is_met else 'MISSED'} ({value:.0f} ms)")
    return is_met


def interactions(browser, folder, repetitions):
    """Both renderers: the table, then the bars; returns which were met."""
    base = folder / "canvas"
    names = fill(make_base(base))
    met = []
    with running(base) as server:
        frontend = opened(browser, server.url)
        wait_until_ready(frontend.page)
        frontend.page.evaluate(PAGE)
        for nodes_2 in (False, True) if frontend.has_nodes_2 else (False,):
            frontend.choose_renderer(nodes_2)
            timings = Timings()
            canvas = Canvas(frontend, timings)
            edit_rows(Canvas(frontend, Timings()), names[:ROWS])  # verdicts are asked once
            for _ in range(repetitions):
                edit_rows(canvas, names[:ROWS])
                search_files(canvas)
            print("Nodes 2.0" if nodes_2 else "Classic canvas", "(min/median/max)")
            for name in timings.seconds:
                line(timings, name)
            met += bars(timings)
        print(f"  errors of ours on the page's console: {len(frontend.errors)}")
        for error in frontend.errors:
            print(f"    {error}")
        met.append(not frontend.errors)
    return met


def bars(timings):
    """Each interaction against its bar; what is built anew, by what 200 rows add to one."""
    met = []
    for what in ("open {} rows", "undo, {} rows"):
        more, one = (median_of(timings, what.format(count)) for count in (ROWS, 1))
        met.append(verdict(f"{what.format(ROWS)}, above one row", more - one, INTERACTION_BAR))
    for name in timings.seconds:
        if name.startswith("picker: first"):
            met.append(verdict(name, median_of(timings, name), PICKER_BAR))
        elif not name.startswith(("open", "undo", "nothing", "duplicate 1")):
            met.append(verdict(name, median_of(timings, name), INTERACTION_BAR))
    return met


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        met = interactions(browser, Path(folder), options.repetitions)
        if options.starts:
            met += start_ups(browser, Path(folder), options.starts)
    print(f"bars: {sum(met)} of {len(met)} met")


if __name__ == "__main__":
    main()
