"""A certificate of this machine that nobody signed but itself."""

import subprocess
from pathlib import Path

_COMMAND = (
    "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem",
)  # fmt: skip


def write_certificate(folder: Path) -> None:
    """Writes `key.pem` and `cert.pem` into a folder."""
    subprocess.run(_COMMAND, cwd=folder, check=True, capture_output=True)
