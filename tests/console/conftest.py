"""A real Chromium on a real gateway that asks for a key."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    expect,
    sync_playwright,
)

from tests.conftest import Homes
from tests.debian import program
from tests.gateway import Gateway, running
from tests.rollouts.conftest import ARMS
from variants.catalog import Catalog

KEY = "an-admin-key-of-the-console-tests"
PATIENCE_MS = 15_000
CANARY = ARMS | {"kind": "canary", "guards": ["errors<=1%"], "step_duration_s": 600}


@dataclass
class Console:
    """A page, and what it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def failed(self, error: Error) -> None:
        self.complaints.append(str(error))


@pytest.fixture(scope="module")
def gateway(digits: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    homes = Homes.copied(tmp_path_factory.mktemp("console"))
    with running(homes, MIPGATE_ADMIN_KEY=KEY, MIPGATE_REQUIRE_KEYS="never") as started:
        yield started


@pytest.fixture(scope="module")
def api(gateway: Gateway) -> Iterator[httpx.Client]:
    """The admin API, for what a test needs to be so before it begins."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{gateway.url}/admin/", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = program("chromium", "usr/lib/chromium/chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def session(browser: Browser, gateway: Gateway) -> Iterator[BrowserContext]:
    """Somebody who is signed in."""
    context = browser.new_context()
    headers = {"x-mipgate-console": "1"}
    signed_in = context.request.post(f"{gateway.url}/admin/session", headers=headers, data={"key": KEY})
    assert signed_in.status == 201
    yield context
    context.close()


Open = Callable[..., Console]


@pytest.fixture
def visit(browser: Browser, gateway: Gateway, session: BrowserContext) -> Iterator[Open]:
    """Opens the page in a window of its own; a test fails when the page complains."""
    opened: list[tuple[BrowserContext, Console]] = []

    def visited(
        width: int = 1440, height: int = 900, scheme: str = "light", stranger: bool = False
    ) -> Console:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            storage_state=None if stranger else session.storage_state(),
        )
        console = Console(context.new_page())
        console.page.on("console", console.heard)
        console.page.on("pageerror", console.failed)
        console.page.set_default_timeout(PATIENCE_MS)
        console.page.goto(f"{gateway.url}/console")
        if not stranger:
            console.page.get_by_role("heading", name="Frontier").wait_for()
        opened.append((context, console))
        return console

    yield visited
    for context, _ in opened:
        context.close()
    assert not [complaint for _, console in opened for complaint in console.complaints]


@pytest.fixture
def canary(api: httpx.Client) -> Iterator[str]:
    """A canary that runs until the test is over, and some traffic on it."""
    started = api.post("models/digits/rollouts", json=CANARY)
    assert started.status_code == 201, started.text
    rollout: str = started.json()["id"]
    yield rollout
    api.post(f"rollouts/{rollout}/abort")


@pytest.fixture
def no_rollout(api: httpx.Client) -> Iterator[None]:
    """Nothing runs before, and nothing is left after."""
    yield
    for rollout in api.get("models/digits/rollouts").json():
        api.post(f"rollouts/{rollout['id']}/abort")


@pytest.fixture(scope="module")
def row() -> np.ndarray:
    return np.zeros(64, dtype=np.float32)
