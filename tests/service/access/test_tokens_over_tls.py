"""A provider's public keys, fetched from a real server over TLS."""

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.access.principal import Role
from service.access.tokens import Provider, Tokens
from service.errors import UnauthorizedError
from tests.certificate import write_certificate
from tests.service.access.test_tokens import RSA, STRANGER, jwks, public, token


class Idp:
    """Shows its keys at /keys, and counts who asks."""

    def __init__(self, folder: Path) -> None:
        write_certificate(folder)
        self.keys = jwks(public(RSA, "r1"))
        self.status, self.asked = 200, 0
        idp = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                idp.asked += 1
                body = idp.keys.encode()
                self.send_response(idp.status)
                self.send_header("Content-Length", str(len(body)))
                if idp.status == 302:
                    self.send_header("Location", f"{idp.url}?elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}/keys"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def idp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Idp]:
    """One whose certificate is trusted, as a company's own is made to be."""
    made = Idp(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def tokens(idp: Idp) -> Tokens:
    return Tokens(Provider("https://idp", "mipgate", idp.url, "realm.roles", {"ml": Role.OPERATE}))


def is_believed(tokens: Tokens, sent: bytes) -> bool:
    try:
        return tokens.verify(sent, time.time()).role is Role.OPERATE
    except UnauthorizedError:
        return False


def test_keys_are_fetched_and_not_for_every_token(tokens: Tokens, idp: Idp) -> None:
    tokens.refresh(0.0)
    assert is_believed(tokens, token())
    for now in (1.0, 20.0, 299.0):
        tokens.refresh(now)
        assert is_believed(tokens, token(sub=f"someone at {now}"))
    assert idp.asked == 1


def test_a_key_that_is_not_known_yet_is_asked_for_and_not_by_everybody_who_invents_one(
    tokens: Tokens, idp: Idp
) -> None:
    tokens.refresh(0.0)
    sent = token(STRANGER, kid="new")
    assert not is_believed(tokens, sent)
    idp.keys = jwks(public(RSA, "r1"), public(STRANGER, "new"))  # it rotates
    for now in (1.0, 5.0, 9.9):
        assert not is_believed(tokens, sent)
        tokens.refresh(now)
    assert idp.asked == 1
    tokens.refresh(10.1)
    assert is_believed(tokens, sent)
    assert is_believed(tokens, token())
    assert idp.asked == 2


def test_a_key_that_is_no_longer_shown_opens_nothing(tokens: Tokens, idp: Idp) -> None:
    tokens.refresh(0.0)
    sent = token()
    assert is_believed(tokens, sent)
    idp.keys = jwks(public(STRANGER, "new"))
    tokens.refresh(301.0)
    assert not is_believed(tokens, sent)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_provider_that_does_not_answer_leaves_what_is_known(
    tokens: Tokens, idp: Idp, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.refresh(0.0)
    idp.status, idp.keys = status, jwks(public(STRANGER, "new"))
    tokens.refresh(301.0)
    assert is_believed(tokens, token())
    assert not is_believed(tokens, token(STRANGER, kid="new"))
    assert idp.asked == 2  # a redirect is not followed: it may lead anywhere
    assert "cannot be read" in caplog.text


def test_a_provider_that_is_gone_leaves_what_is_known(tokens: Tokens, idp: Idp) -> None:
    tokens.refresh(0.0)
    idp.server.shutdown()
    idp.server.server_close()
    tokens.refresh(301.0)
    assert is_believed(tokens, token())


def test_a_provider_that_nobody_vouches_for_is_not_believed(
    tokens: Tokens, idp: Idp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    tokens.refresh(0.0)
    assert not is_believed(tokens, token())
    assert idp.asked == 0
    assert "certificate" in caplog.text.lower()
