"""What the page shows, and what it never does."""

import httpx
import numpy as np
import pytest
from playwright.sync_api import Error, expect

from tests.console.conftest import KEY, Open
from tests.gateway import Gateway

VARIANTS = 7


def test_a_model_is_shown_and_nothing_is_complained_about(visit: Open) -> None:
    page = visit().page
    expect(page).to_have_title("digits · Mipgate")
    expect(page.get_by_role("navigation", name="Models").get_by_role("link", name="digits")).to_be_visible()
    expect(page.locator(".dot-mark")).to_have_count(VARIANTS)
    expect(page.get_by_role("table", name="Variants").get_by_role("row")).to_have_count(VARIANTS + 1)
    for tier in ("accurate", "balanced", "fast"):
        expect(page.get_by_role("rowheader", name=tier)).to_be_visible()
    expect(page.get_by_text("No rollout is running")).to_be_visible()


def test_figures_follow_the_traffic(visit: Open, gateway: Gateway, row: np.ndarray) -> None:
    page = visit().page
    for _ in range(20):
        gateway.infer(row, tier="fast")
    expect(page.get_by_role("row", name="fast").locator(".flow i").first).to_be_visible()
    expect(page.locator(".figure.lead .value")).not_to_have_text("0")


def test_the_policy_lets_nothing_else_run_or_load(visit: Open, gateway: Gateway) -> None:
    console = visit()
    refused = console.page.evaluate(
        """() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:1/elsewhere.png" }));
        })"""
    )
    assert refused == "img-src"
    with pytest.raises(Error, match="TrustedHTML"):
        console.page.evaluate("document.createElement('p').innerHTML = '<b>no</b>'")
    console.complaints.clear()
    policy = httpx.get(f"{gateway.url}/console/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_the_session_is_out_of_reach_of_scripts(visit: Open) -> None:
    page = visit().page
    assert page.evaluate("document.cookie") == ""
    cookie = next(c for c in page.context.cookies() if c["name"] == "mipgate_session")
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")


def test_a_change_without_the_page_s_header_is_refused(visit: Open) -> None:
    console = visit()
    status = console.page.evaluate(
        "fetch('/admin/models/digits/variants/fp16/retire', {method: 'POST'}).then(answer => answer.status)"
    )
    assert status == 403
    console.complaints.clear()  # Chromium tells of each 403


def test_signing_in_and_out(visit: Open) -> None:
    console = visit(stranger=True)
    page = console.page
    key = page.get_by_label("Key", exact=True)
    expect(key).to_be_focused()
    key.fill("mipgate_nobody_knows")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("this key is not known, or was revoked")
    key.fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Frontier")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(key).to_be_visible()
    assert not [c for c in page.context.cookies() if c["name"] == "mipgate_session"]
    console.complaints.clear()  # Chromium tells of each 401


def test_who_may_only_look_is_offered_no_change(visit: Open, api: httpx.Client) -> None:
    made = api.post("keys", json={"name": "looker", "role": "infer"}).json()
    console = visit(stranger=True)
    console.page.get_by_label("Key", exact=True).fill(made["key"])
    console.page.keyboard.press("Enter")
    expect(console.page.get_by_role("heading", name="Frontier")).to_be_visible()
    for name in ("Start a rollout", "Build a variant", "Retire fp16"):
        expect(console.page.get_by_role("button", name=name)).to_have_count(0)
    api.delete(f"keys/{made['id']}")
    expect(console.page.get_by_label("Key", exact=True)).to_be_visible()  # the stream ends with the key
    console.complaints.clear()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_cut_off_or_scrolls_sideways(visit: Open, canary: str, width: int) -> None:
    page = visit(width, 844).page
    expect(page.locator(".guards li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Scorecard of pruned-distilled-int8").click()
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= width


def test_a_scorecard_tells_all_of_a_build(visit: Open) -> None:
    page = visit().page
    page.locator(".dot-mark").last.click()  # of dots that overlap it lies on top
    card = page.get_by_role("dialog")
    for heading in ("Quality", "Size and cost", "Latency here", "Recipe", "Classes that lose"):
        expect(card.get_by_role("heading", name=heading)).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)


def test_a_lost_connection_is_said_and_found_again(visit: Open) -> None:
    console = visit()
    console.page.route("**/admin/**", lambda route: route.abort())
    console.page.reload()
    expect(console.page.get_by_role("alert")).to_contain_text("connection to the gateway is lost")
    console.page.unroute("**/admin/**")
    expect(console.page.get_by_role("heading", name="Frontier")).to_be_visible()
    expect(console.page.get_by_text("connection to the gateway is lost")).to_have_count(0)
    console.complaints.clear()
