"""A gateway of a few lines, for tests of clients: two variants of a model that names its largest value."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "stub"
VARIANTS = ("fp32", "int8")
TIERS = ("accurate", "fast")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answers_fast = "int8"
    key: str | None = None

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.key and self.headers["Authorization"] != f"Bearer {self.key}" and "health" not in self.path:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self._send({"error": "this needs a key. Send one."}, 401)
            return False
        return True

    def do_GET(self) -> None:
        if self.path == "/v2/health/live":
            self._send({"live": True})
        elif self.path == f"/v2/models/{MODEL}":
            inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
            self._send({"name": MODEL, "versions": VARIANTS, "inputs": inputs})
        elif self.path == "/v2/openapi.json":
            tier = {"properties": {"tier": {"enum": TIERS}}}
            request = {"properties": {"parameters": tier}}
            self._send({"components": {"schemas": {f"{MODEL}.InferRequest": request}}})
        else:
            self._send({"error": f"unknown path {self.path}. Read the documentation."}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v2/repository/index":
            self._send([{"name": MODEL, "version": name, "state": "READY"} for name in VARIANTS])
            return
        tier = body["parameters"].get("tier", "accurate")
        pinned = self.path.partition("/versions/")[2].removesuffix("/infer")
        variant = pinned or (self.answers_fast if tier == "fast" else "fp32")
        values = body["inputs"][0]["data"]
        document = {
            "model_name": MODEL,
            "model_version": f"{variant}@abc",
            "parameters": {"variant": variant, "tier": tier, "degraded": False, "request_id": "1"},
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": values}],
        }
        self._send(document, 200, {"Server-Timing": "queue;dur=0.1, infer;dur=0.2"})

    def _send(self, document: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        payload = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # who has to wait is not turned away


@contextmanager
def stub_gateway(**attributes: object) -> Iterator[str]:
    """Serves on a free port; gives the base address."""
    handler = type("ChangedHandler", (Handler,), attributes)
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
