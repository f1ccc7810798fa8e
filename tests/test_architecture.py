"""The rules of the house: which way imports point, what serving may not load, what stands at the top."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Homes

ALLOWED = {
    "compression": {"compression"},
    "variants": {"compression", "variants"},
    "service": {"compression", "variants", "service"},
    "loadtests": {"loadtests"},
}
HEAVY = {
    "torch",
    "sklearn",
    "onnx",
    "onnxscript",
    "torch_pruning",
    "transformers",
    "datasketch",
    "optuna",
    "nncf",
    "torchao",
    "ray",
    "locust",
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    own = {name.partition(".")[0] for name in _imports(path)} & ALLOWED.keys()
    assert own <= ALLOWED[package]


def test_modules_do_not_import_in_circles() -> None:
    modules = {_module(path): path for path in FILES}
    edges = {name: (_imports(path) & modules.keys()) - {name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_files_have_names_that_say_something(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "base_utils"}


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("package", ALLOWED)
def test_package_roots_hold_a_paragraph_and_nothing_heavy(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_serving_never_imports_what_building_needs(homes: Homes) -> None:
    code = "import sys, service.gateway; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=homes.environment,
        cwd=ROOT,
    )
    assert not HEAVY & set(loaded.stdout.split())


def test_only_service_knows_http_status_codes() -> None:
    pattern = re.compile(r"status_code|HTTPStatus|\bstatus\s*=\s*[45]\d\d")
    offenders = [
        _module(path)
        for path in FILES
        if path.relative_to(ROOT).parts[0] in ("compression", "variants") and pattern.search(path.read_text())
    ]
    assert not [name for name in offenders if not name.startswith("variants.cli.")]


def test_no_model_is_named_outside_the_zoo() -> None:
    pattern = re.compile(r"[=!]=\s*[\"'](digits|cifar10|spam)[\"']")
    assert not [_module(path) for path in FILES if pattern.search(path.read_text())]


def test_nothing_is_pickled() -> None:
    pattern = re.compile(r"\bimport (cloud)?pickle|allow_pickle=True|torch\.save\(|torch\.load\(|joblib")
    assert not [_module(path) for path in FILES if pattern.search(path.read_text())]


def test_a_bento_installs_what_the_base_install_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = _pins((ROOT / "deploy" / "constraints.txt").read_text().splitlines())
    packed = _pins(yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"])
    base = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}  # type: ignore[index]
    assert packed.keys() == base
    assert packed == {name: constraints[name] for name in base}


def test_the_readme_begins_with_exactly_two_commands() -> None:
    block = re.search(r"```(?:\w+)?\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    commands = [re.sub(r"\s+#.*", "", line).strip() for line in block[1].splitlines()]
    assert commands == ["make demo", "make test"]


def _pins(lines: list[str]) -> dict[str, str]:
    pinned = (line.partition(";")[0].strip() for line in lines if "==" in line and not line.startswith("#"))
    return {
        name.partition("[")[0].lower().replace("_", "-"): version
        for name, _, version in (p.partition("==") for p in pinned)
    }
