"""axe-core finds nothing serious in what we show, in both palettes and renderers."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from .conftest import LORA
from .test_live import Probe
from .test_relink import FIND
from .test_report import LOAD_AND_INSPECT
from .test_rows import WITH_CHECKPOINT, Editor, header_only_checkpoint

SERIOUS = ("serious", "critical")
PALETTE = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
# Contrast where axe cannot tell it, as above a canvas: the colours behind, one over the other.
CONTRASTS = """(root) => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
    const rgba = (color) => {
        context.clearRect(0, 0, 1, 1)
        context.fillStyle = color
        context.fillRect(0, 0, 1, 1)
        return [...context.getImageData(0, 0, 1, 1).data]
    }
    const over = (top, below) =>
        below.map((value, at) => value + (top[at] - value) * (top[3] / 255))
    const node = LiteGraph.NODE_DEFAULT_BGCOLOR
    const backgroundOf = (element) => {
        const chain = []
        for (let at = element; at; at = at.parentElement) chain.push(at)
        const ground = rgba(root.closest("dialog") ? "black" : node).slice(0, 3)
        return chain.reverse().reduce((below, each) => {
            const color = rgba(getComputedStyle(each).backgroundColor)
            return over(color, below)
        }, ground)
    }
    const light = (color) => {
        const [r, g, b] = color.map((value) => {
            const part = value / 255
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
        })
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const opacityOf = (element) => {
        let opacity = 1
        for (let at = element; at && at !== root; at = at.parentElement)
            opacity *= Number(getComputedStyle(at).opacity)
        return opacity
    }
    const low = []
    for (const element of [root, ...root.querySelectorAll("*")]) {
        const isField = element.matches("input[type=text], textarea")
        const hasText = [...element.childNodes].some((node) =>
            node.nodeType === Node.TEXT_NODE && node.data.trim())
        if (!(isField || hasText) || !element.checkVisibility() || element.disabled) continue
        const below = backgroundOf(element)
        const parts = isField && !element.value ? [element, "::placeholder"] : [element]
        const color = rgba(getComputedStyle(...parts).color)
        color[3] *= opacityOf(element)
        const [a, b] = [light(over(color, below)), light(below)].sort((x, y) => y - x)
        const contrast = (a + 0.05) / (b + 0.05)
        if (contrast < 4.5)
            low.push(`${element.className || element.tagName} ${element.textContent.slice(0, 20)} `
                + `${contrast.toFixed(2)}: ${color} on ${below}`)
    }
    return [...new Set(low)]
}"""


@pytest.fixture(params=["dark", "light"])
def palette(request, shown):
    shown.page.evaluate(PALETTE, request.param)
    yield shown
    shown.page.evaluate("() => document.querySelector('dialog[open]')?.close()")
    shown.page.evaluate(PALETTE, "dark")
    assert shown.errors == []


def problems(page, selector):
    """What axe and our own look at contrast find below a selector."""
    page.wait_for_timeout(300)
    found = Axe().run(page, selector, RULES).response["violations"]
    told = [
        f"{each['id']} ({each['impact']}): {node['html']} {node['failureSummary']}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]
    return told + page.locator(selector).evaluate(CONTRASTS)


def test_the_rows(palette):
    editor = Editor(palette)
    editor.rows = [
        {"name": LORA, "clip": 0.5, "weighting": ""},
        {"name": "missing.safetensors", "on": False},
        {"name": LORA, "weighting": "IN=0.5"},
    ]
    editor.wait("() => document.querySelectorAll('.lw-verdict[data-level]').length === 3")
    assert problems(editor.page, ".lw-rows") == []
    editor.page.evaluate(
        "() => { app.graph.nodes[0].widgets.find(w => w.name === 'rows').value = 'x' }"
    )
    assert problems(editor.page, ".lw-rows") == []


def test_the_picker(palette):
    editor = Editor(palette)
    editor.button("Add LoRA").click()
    editor.page.locator(".lw-found li").first.wait_for()
    editor.page.keyboard.press("Space")
    assert problems(editor.page, ".lw-picker") == []


@pytest.mark.parametrize("name", [LORA, "missing.safetensors"])
def test_the_details(palette, name):
    editor = Editor(palette)
    editor.rows = [{"name": name}]
    editor.root.locator(".lw-name").click()
    dialog = editor.page.locator(".lw-dialog")
    dialog.locator("h2, [role=alert]").first.wait_for()
    if name == LORA:
        dialog.get_by_text("Metadata").click()
    assert problems(editor.page, ".lw-dialog") == []
    palette.errors.clear()  # the browser tells of the 404 that was asked for


def test_the_report(palette):
    palette.prompt(LOAD_AND_INSPECT)
    assert problems(palette.page, ".lw-report") == []


def test_the_weighting(palette, server):
    header_only_checkpoint(server.checkpoints / "axe-sd15.safetensors", "sd15")
    editor = Editor(palette)
    editor.page.evaluate(WITH_CHECKPOINT, "axe-sd15.safetensors")
    editor.rows = [{"name": LORA, "weighting": "IN04=0.5, attn2=0"}]
    editor.button(f"Weighting of {LORA}").click()
    editor.root.get_by_role("slider").first.wait_for()
    assert problems(editor.page, ".lw-rows") == []


def test_the_missing_files(palette):
    Editor(palette).rows = [{"name": "axe-missing.safetensors"}]
    palette.page.evaluate(FIND)
    palette.page.locator(".lw-relink").wait_for()
    assert problems(palette.page, ".lw-relink") == []
    palette.page.evaluate("() => document.querySelector('.lw-relink').remove()")


def test_the_live_panel(palette):
    probe = Probe(palette, steps=12)
    palette.run()
    assert problems(probe.page, ".lw-live") == []
