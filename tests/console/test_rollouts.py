"""Rollouts and builds from the page, by mouse and by keyboard alone."""

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.console.conftest import Open

pytestmark = pytest.mark.usefixtures("no_rollout")


def test_a_canary_is_started_and_aborted(visit: Open, api: httpx.Client) -> None:
    page = visit().page
    page.get_by_role("button", name="Start a rollout").click()
    dialog = page.get_by_role("dialog")
    for label, recipe in (("Primary", "fp32"), ("Candidate", "int8-static")):
        field = dialog.get_by_label(label, exact=True)
        field.select_option(field.locator("option", has_text=recipe).get_attribute("value"))
    dialog.get_by_label("Steps, percent").fill("10, 100")
    dialog.get_by_label("Each step at least, seconds").fill("600")
    dialog.get_by_role("button", name="Start").click()
    expect(page.locator(".toast")).to_contain_text("is released already")
    expect(page.get_by_role("status").filter(has_text="progressing")).to_be_visible()
    expect(page.locator(".weights")).to_contain_text("10%")
    (rollout,) = [r for r in api.get("models/digits/rollouts").json() if r["phase"] == "progressing"]
    assert (rollout["kind"], rollout["steps"]) == ("canary", [10, 100])
    assert [guard["statistic"] for guard in rollout["guards"]] == ["agreement", "p99", "errors"]
    page.get_by_role("button", name="Abort").click()
    expect(page.get_by_role("dialog")).to_contain_text("All traffic goes back to")
    page.get_by_role("dialog").get_by_role("button", name="Abort").click()
    expect(page.get_by_role("status").filter(has_text="failed").first).to_be_visible()
    page.locator("details.history summary").first.click()
    expect(page.locator("details.history").first).to_contain_text("aborted by")
    assert api.get(f"rollouts/{rollout['id']}").json()["phase"] == "failed"


def test_the_keyboard_alone_is_enough(visit: Open, api: httpx.Client, canary: str) -> None:
    page = visit().page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    expect(page.get_by_role("status").filter(has_text="progressing")).to_be_visible()
    go_to(page, "Pause")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="paused").first).to_be_visible()
    assert api.get(f"rollouts/{canary}").json()["paused"] is True
    go_to(page, "Start a rollout", backwards=True)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Start a rollout")).to_be_focused()
    go_to(page, "Abort")
    page.keyboard.press("Enter")
    go_to(page, "Abort")  # in the dialog that asks
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page).to_have_title("digits · Mipgate")
    assert api.get(f"rollouts/{canary}").json()["phase"] in ("finalising", "failed")


def test_the_api_s_own_words_are_shown(visit: Open) -> None:
    console = visit()
    page = console.page
    page.get_by_role("button", name="Start a rollout").click()
    page.get_by_label("Guard 1", exact=True).fill("beauty>=1")
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("beauty")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Build a variant").click()
    page.get_by_label("Recipe", exact=True).last.fill("int8-static")
    page.get_by_role("button", name="Ask a builder").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("no builder is running")
    console.complaints.clear()  # Chromium tells of each 400


def test_a_change_by_somebody_else_is_seen(visit: Open, api: httpx.Client, canary: str) -> None:
    page = visit().page
    expect(page.get_by_role("status").filter(has_text="progressing")).to_be_visible()
    api.post(f"rollouts/{canary}/pause")
    expect(page.get_by_role("status").filter(has_text="paused").first).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()


def test_a_variant_is_retired_and_released(visit: Open, api: httpx.Client) -> None:
    page = visit().page
    page.get_by_role("button", name="Retire fp16", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Retire").click()
    expect(page.get_by_role("button", name="Load as candidate fp16", exact=True)).to_be_visible()
    assert api.post("models/digits/variants/fp16/release").json()["was"] == "retired"
    expect(page.get_by_role("button", name="Retire fp16", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_a_screen_reader_finds_nothing_missing(visit: Open, canary: str, scheme: str, width: int) -> None:
    page = visit(width, 900, scheme).page
    expect(page.get_by_role("status").filter(has_text="progressing")).to_be_visible()
    assert faults(page) == []
    page.get_by_role("button", name="Start a rollout").click()
    page.get_by_role("dialog").wait_for()
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Scorecard of fp16").click()
    assert faults(page) == []


def go_to(page: Page, name: str, backwards: bool = False) -> None:
    """Tabs to the button of this name."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if page.evaluate("document.activeElement.textContent").strip() == name:
            return
    raise AssertionError(f"no way leads to {name}")


def faults(page: Page) -> list[str]:
    """What axe finds, by rule and element."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
