"""The peers, each started as its documentation tells, with the same file, engine and threads."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.environments import environment, packages, python
from loadtests.bench.processes import Peer
from loadtests.bench.requests import Told, plain_json, raw_bytes, rows_json, v2_binary, v2_json

GATEWAY, ECHO, PLAIN, BATCHABLE = "mipgate", "bare uvicorn", "plain bentoml", "bentoml batchable"
ONE_WORKER = f"{GATEWAY}, 1 worker"
MOSEC, LITSERVE, MLSERVER, TRITON = "mosec", "litserve", "mlserver", "triton, python backend"
MODEL_PEERS = (PLAIN, BATCHABLE, MOSEC, LITSERVE, MLSERVER, TRITON)
PEERS = (ECHO, *MODEL_PEERS)
MAX_BATCH = 32

_KEY = secrets.token_urlsafe(32)  # of the gateways that this process starts
KEY_HEADERS = {"Authorization": f"Bearer {_KEY}"}

_ROOT = Path(__file__).parents[2]
_MODULES = "loadtests.bench.peers"
_TRITON_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_NO_BINARY = "takes no binary tensors over HTTP"


@dataclass(frozen=True)
class Artifact:
    """A file that peers serve, and how it runs best on this host.

    Attributes:
        path: The ONNX file.
        engine: As `mipgate show` names it.
        precision: Of floating operations.
        threads: Of one call.
        input: Name of its only input.
        dtype: Of that input.
        row_shape: Shape of one row.
        outputs: Length of one row of the first output.
    """

    path: Path
    engine: str
    precision: str
    threads: int
    input: str
    dtype: str
    row_shape: tuple[int, ...]
    outputs: int

    @property
    def variables(self) -> dict[str, str]:
        """What `peers/session.py` reads."""
        return {
            "BENCH_ONNX": str(self.path),
            "BENCH_ENGINE": self.engine,
            "BENCH_PRECISION": self.precision,
            "BENCH_THREADS": str(self.threads),
            "PYTHONPATH": str(_ROOT),
        }


def gateway(folder: Path, model: str, workers: int = 0) -> Peer:
    """Mipgate with one of the caller's models, in homes of its own: another may run in the caller's.

    It chooses the number of `workers` itself where that is 0.
    """
    caller = Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")
    home = folder / "bentoml"
    (home / "models").mkdir(parents=True)
    for stored in (caller.resolve() / "models").iterdir():
        if stored.name.partition(".")[0] == model:
            (home / "models" / stored.name).symlink_to(stored)
    bentoml = str(Path(sys.executable).with_name("bentoml"))
    address = ("--host", "127.0.0.1", "--port", "{port}")
    variables = {
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "1",
        "MIPGATE_HOME": str(folder / "mipgate"),
        "MIPGATE_WORKERS": str(workers),
        "MIPGATE_ADMIN_KEY": _KEY,
        "MIPGATE_REQUIRE_KEYS": "always",
    }
    path = f"/v2/models/{model}/infer"
    told = with_key({})
    return Peer(
        ONE_WORKER if workers == 1 else GATEWAY,
        (bentoml, "serve", "service.gateway:Gateway", *address),
        {"json": v2_json(path, told), "binary": v2_binary(path, told)},
        variables,
        {},
    )


def with_key(parameters: Mapping[str, str | int]) -> Told:
    """What requests to the gateway say: with a key, since everything is on."""
    return Told(parameters, KEY_HEADERS)


def peer(name: str, artifact: Artifact, folder: Path, progress: Callable[[str], None]) -> Peer:
    """A server of one file.

    Args:
        name: One of `PEERS`.
        artifact: What it serves.
        folder: For its files.
        progress: Told when its environment is installed.

    Raises:
        InstallError: Its environment cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _MAKERS[name](artifact, folder, progress)


def _echo(artifact: Artifact, folder: Path, progress: Callable[[str], None]) -> Peer:
    interpreter = str(python(environment("uvicorn", progress)))
    address = ("--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
    wires = {"json": v2_json("/", echo=True), "binary": v2_binary("/", echo=True)}
    command = (interpreter, "-m", "uvicorn", f"{_MODULES}.echo:app", *address)
    return Peer(ECHO, command, wires, artifact.variables, {})


def _bentoml(
    name: str, service: str, artifact: Artifact, folder: Path, progress: Callable[[str], None]
) -> Peer:
    interpreter = str(python(environment("bentoml", progress)))
    address = ("--host", "127.0.0.1", "--port", "{port}")
    return Peer(
        name,
        (interpreter, "-m", "bentoml", "serve", f"{_MODULES}.bentoml_services:{service}", *address),
        {"json": rows_json("/predict")},
        {**artifact.variables, "BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "1"},
        {"binary": _NO_BINARY},
    )


def _mosec(artifact: Artifact, folder: Path, progress: Callable[[str], None]) -> Peer:
    interpreter = str(python(environment("mosec", progress)))
    address = ("--address", "127.0.0.1", "--port", "{port}", "--path", str(folder / "sockets"))
    wires = {"json": plain_json("/inference", lambda answer: answer), "binary": raw_bytes("/raw")}
    command = (interpreter, "-m", f"{_MODULES}.mosec_server", *address)
    return Peer(MOSEC, command, wires, artifact.variables, {})


def _litserve(artifact: Artifact, folder: Path, progress: Callable[[str], None]) -> Peer:
    interpreter = str(python(environment("litserve", progress)))
    wires = {"json": plain_json("/predict", lambda answer: answer["output"])}
    command = (interpreter, "-m", f"{_MODULES}.litserve_server", "--port", "{port}")
    # Its loops poll their queues: an eighth of a core while nobody asks.
    return Peer(LITSERVE, command, wires, artifact.variables, {"binary": _NO_BINARY}, restless=True)


def _mlserver(artifact: Artifact, folder: Path, progress: Callable[[str], None]) -> Peer:
    home = environment("mlserver", progress)
    settings: dict[str, Any] = {
        "host": "127.0.0.1",
        "parallel_workers": 0,  # the model runs in the server's process: the faster way for one model
        "metrics_endpoint": None,
        "debug": False,
    }
    model = {
        "name": "model",
        "implementation": f"{_MODULES}.mlserver_runtime.OnnxRuntime",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_bytes(orjson.dumps(settings))
    (folder / "model-settings.json").write_bytes(orjson.dumps(model))
    path = "/v2/models/model/infer"
    return Peer(
        MLSERVER,
        (str(python(home)), str(home / "bin" / "mlserver"), "start", str(folder)),
        {"json": v2_json(path)},
        {**artifact.variables, "MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "0"},
        {"binary": _NO_BINARY},
    )


def _triton(artifact: Artifact, folder: Path, progress: Callable[[str], None]) -> Peer:
    home = environment("triton", progress)
    files = packages(home) / "pytriton" / "tritonserver"
    backends, repository = folder / "backends", folder / "repository"
    _add_python_backend(files, backends)
    version = repository / "model" / "1"
    version.mkdir(parents=True)
    shutil.copy(_ROOT / "loadtests" / "bench" / "peers" / "triton_model.py", version / "model.py")
    (version.parent / "config.pbtxt").write_text(_triton_config(artifact))
    server = _executable(files / "bin" / "tritonserver")
    libraries = (packages(home) / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR")))
    path = "/v2/models/model/infer"
    return Peer(
        TRITON,
        (
            str(server),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            "--http-address=127.0.0.1",
            "--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
        ),
        {"json": v2_json(path), "binary": v2_binary(path)},
        {
            **artifact.variables,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            # The backend's Python finds its environment by the first `python3` there, and no PYTHONPATH.
            "PATH": os.pathsep.join((str(home / "bin"), os.environ["PATH"])),
            "BENCH_ROOT": str(_ROOT),
        },
        {},
    )


def _add_python_backend(files: Path, backends: Path) -> None:
    """The backend, with the stub for this Python beside it."""
    shutil.copytree(files / "backends" / "python", backends / "python")
    stub = "triton_python_backend_stub"
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(files / "python_backend_stubs" / ours / stub, backends / "python" / stub)
    _executable(backends / "python" / stub)


def _executable(path: Path) -> Path:
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _triton_config(artifact: Artifact) -> str:
    dims = ", ".join(map(str, artifact.row_shape))
    given = f'name: "{artifact.input}" data_type: {_TRITON_TYPES[artifact.dtype]} dims: [{dims}]'
    return (
        f'name: "model"\nbackend: "python"\nmax_batch_size: {MAX_BATCH}\n'
        f"input [{{ {given} }}]\n"
        f'output [{{ name: "output" data_type: TYPE_FP32 dims: [{artifact.outputs}] }}]\n'
        "instance_group [{ count: 1 kind: KIND_CPU }]\ndynamic_batching { }\n"
    )


_MAKERS: dict[str, Callable[[Artifact, Path, Callable[[str], None]], Peer]] = {
    ECHO: _echo,
    PLAIN: lambda *given: _bentoml(PLAIN, "Plain", *given),
    BATCHABLE: lambda *given: _bentoml(BATCHABLE, "Batchable", *given),
    MOSEC: _mosec,
    LITSERVE: _litserve,
    MLSERVER: _mlserver,
    TRITON: _triton,
}


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The peers of these short names, in the order of the tables; all of them for None.

    Raises:
        ValueError: There is none of a name.
    """
    short = {name.partition(",")[0]: name for name in PEERS}
    if names is None:
        return PEERS
    if unknown := sorted(set(names) - set(short)):
        raise ValueError(f"no peer is called {', '.join(unknown)}. There are {', '.join(short)}.")
    return tuple(short[name] for name in short if name in names)
