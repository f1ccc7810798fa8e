"""Who gets the page's files, and with which headers."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from service.access.access import Access, Rules
from service.access.keys import new_key
from service.access.principal import Role
from service.console.routes import console_routes

PAGE = Path("service/console/page")
LOCAL = ("127.0.0.1", 50000)
REMOTE = ("192.0.2.7", 50000)


def client(
    folder: Path, peer: tuple[str, int], has_keys: bool = False, is_container: bool = False
) -> TestClient:
    access = Access(Rules(None, "auto", is_container, None), folder)
    access.follow([new_key("somebody", Role.ADMIN, 0.0)[1]] if has_keys else [])
    app = Starlette(routes=console_routes(access))
    return TestClient(app, base_url="http://localhost:3000", client=peer)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("", "text/html"),
        ("main.js", "text/javascript"),
        ("style/base.css", "text/css"),
        ("icon.svg", "image/svg"),
    ],
)
def test_files_come_with_their_type_and_the_policy(tmp_path: Path, name: str, media_type: str) -> None:
    answer = client(tmp_path, LOCAL).get(f"/console/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_a_browser_has_is_not_sent_again(tmp_path: Path) -> None:
    browser = client(tmp_path, LOCAL)
    tag = browser.get("/console/main.js").headers["etag"]
    again = browser.get("/console/main.js", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_the_bare_path_leads_to_the_page_whatever_stands_before_it(tmp_path: Path) -> None:
    answer = client(tmp_path, LOCAL).get("/console", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "console/")


@pytest.mark.parametrize("path", ["routes.py", "../routes.py", "%2e%2e/routes.py", "style", "vendor/"])
def test_nothing_but_the_page_is_served(tmp_path: Path, path: str) -> None:
    assert client(tmp_path, LOCAL).get(f"/console/{path}").status_code == 404


def test_without_keys_only_this_machine_gets_it(tmp_path: Path) -> None:
    assert client(tmp_path, LOCAL).get("/console/").status_code == 200
    refused = client(tmp_path, REMOTE).get("/console/")
    assert refused.status_code == 403
    assert "mipgate keys create" in refused.text
    assert client(tmp_path, LOCAL, is_container=True).get("/console/").status_code == 403


def test_with_keys_everybody_may_sign_in(tmp_path: Path) -> None:
    assert client(tmp_path, REMOTE, has_keys=True).get("/console/").status_code == 200


def test_no_file_asks_for_another_host() -> None:
    files = [path for path in PAGE.rglob("*") if path.suffix in (".js", ".css", ".html")]
    assert len(files) > 20
    named = [path.name for path in files if "://" in path.read_text().replace("http://www.w3.org", "")]
    assert not named
