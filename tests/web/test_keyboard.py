"""The row editor by keyboard alone: everything is reached, the focus is seen and never lost."""

import pytest

from .conftest import LORA
from .test_rows import VALUE, Editor

# Of the focused element: its label, and its outline's width in pixels.
FOCUSED = """() => {
    const at = document.activeElement
    const { outlineStyle, outlineWidth } = getComputedStyle(at)
    const label = at.getAttribute("aria-label") ?? at.textContent
    const isOurs = Boolean(at.closest(".lw-rows, .lw-dialog"))
    return { label, isOurs, outline: outlineStyle === "none" ? 0 : parseFloat(outlineWidth) }
}"""
CLIPBOARD = """(kind) => {
    window.clipboard ??= new DataTransfer()
    document.activeElement.dispatchEvent(new ClipboardEvent(
        kind, { clipboardData: window.clipboard, bubbles: true, cancelable: true }))
}"""


class Keyboard:
    """Keys on an editor; after each the focus stands on an element of ours and is seen."""

    def __init__(self, editor):
        self.editor, self.page = editor, editor.page

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
            self.focused()

    def type(self, text):
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)
        self.press("Enter")

    def focused(self):
        found = self.page.evaluate(FOCUSED)
        assert found["isOurs"], f"the focus is lost: {found}"
        assert found["outline"] >= 2, found
        return found["label"]

    def tab_to(self, label, key="Tab"):
        """Go on with Tab (or Shift+Tab) until the element of this label has the focus."""
        passed = []
        while not passed or not passed[-1].startswith(label):
            self.page.keyboard.press(key)
            passed.append(self.focused())
            assert len(passed) < 60, f"no {label} among {passed}"


@pytest.fixture
def keyboard(shown):
    editor = Editor(shown)
    editor.button("Add LoRA").focus()
    yield Keyboard(editor)
    shown.page.evaluate("() => document.querySelector('dialog[open]')?.close()")
    assert shown.errors == []


def test_a_row_is_added_changed_and_removed(keyboard):
    editor = keyboard.editor
    editor.page.keyboard.press("Enter")
    editor.page.locator(".lw-found li").first.wait_for()
    editor.page.keyboard.type("style")
    editor.page.keyboard.press("Enter")
    editor.wait(f"() => ({VALUE})().includes('sha256')")
    assert keyboard.focused() == f"Strength of {LORA}"
    keyboard.type("0.5")
    keyboard.press("ArrowUp")
    keyboard.tab_to("CLIP strength of")
    keyboard.press("Enter")
    assert keyboard.focused() == f"CLIP strength of {LORA}"
    keyboard.type("0.25")
    keyboard.tab_to(f"Weighting of {LORA} by block")
    keyboard.press("Enter")
    assert keyboard.focused() == f"Weighting of {LORA}"
    keyboard.type("IN=0.5")
    (row,) = editor.rows
    assert (row["model"], row["clip"], row["weighting"]) == (0.55, 0.25, "IN=0.5")
    keyboard.tab_to(f"{LORA} on", "Shift+Tab")
    keyboard.press("Space")
    assert not editor.rows[0]["on"]
    keyboard.tab_to("All LoRAs on", "Shift+Tab")
    keyboard.press("Space")
    assert editor.rows[0]["on"]
    keyboard.tab_to("Remove")
    keyboard.press("Enter")
    assert editor.rows == []
    assert keyboard.focused() == "+ Add LoRA"


def test_rows_are_moved_doubled_soloed_and_undone(keyboard):
    editor = keyboard.editor
    editor.rows = [{"name": name} for name in "abc"]
    keyboard.tab_to("Reorder a")
    keyboard.press("Alt+ArrowDown", "Alt+ArrowDown", "Alt+ArrowUp")
    assert editor.names == ["b", "a", "c"]
    assert keyboard.focused().startswith("Reorder a")
    keyboard.tab_to("Solo a")
    keyboard.press("Enter")
    assert keyboard.focused().startswith("Solo a")
    assert [row["on"] for row in editor.rows] == [False, True, False]
    keyboard.tab_to("Duplicate a")
    keyboard.press("Enter")
    assert keyboard.focused() == "Strength of a"
    assert editor.names == ["b", "a", "a", "c"]
    keyboard.tab_to("Remove a")
    keyboard.press("Enter")
    assert keyboard.focused() == "Remove c"
    keyboard.press("Enter")
    assert keyboard.focused() == "Remove a"
    assert editor.names == ["b", "a"]
    editor.page.keyboard.press("Control+z")
    editor.wait("() => document.querySelectorAll('.lw-row .lw-name').length === 3")
    assert editor.names == ["b", "a", "c"]
    editor.wait("() => document.activeElement.matches('.lw-row button')")
    assert keyboard.focused() == "Remove a"


def test_details_give_the_focus_back(keyboard):
    editor = keyboard.editor
    editor.rows = [{"name": "a"}, {"name": LORA}]
    keyboard.tab_to(f"{LORA} on")
    keyboard.tab_to("style")
    keyboard.press("Enter")
    dialog = editor.page.get_by_role("dialog", name=LORA)
    dialog.get_by_text("Metadata").wait_for()
    assert keyboard.focused() == "Close"
    keyboard.tab_to("Use another file", "Shift+Tab")
    keyboard.tab_to("Metadata", "Shift+Tab")
    keyboard.press("Enter", "Escape")
    dialog.wait_for(state="detached")
    assert keyboard.focused() == "style"


def test_the_picker_gives_the_focus_back(keyboard):
    keyboard.press("Enter")
    keyboard.page.locator(".lw-found li").first.wait_for()
    keyboard.tab_to("Folder")
    keyboard.tab_to("Add")
    keyboard.press("Escape")
    keyboard.page.get_by_role("dialog").wait_for(state="detached")
    assert keyboard.focused() == "+ Add LoRA"


def test_rows_are_copied_and_pasted(keyboard):
    keyboard.editor.rows = [{"name": "a", "model": 0.5}]
    keyboard.tab_to("Solo a")
    keyboard.page.evaluate(CLIPBOARD, "copy")
    keyboard.page.evaluate(CLIPBOARD, "paste")
    assert keyboard.editor.names == ["a", "a"]
    assert keyboard.focused() == "Strength of a"
