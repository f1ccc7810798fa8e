"""Collecting: what is old or unused goes, the oldest first for a quota, and nothing that is needed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.variants.tiny_specs import TINY
from variants.build import build
from variants.catalog import Catalog
from variants.collecting import Collected, collect
from variants.host import this_host
from variants.progress import Lines
from variants.variant import Life

# BentoML's own, where its Bentos are looked through in this process.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
NOW, DAY = 2e9, 86400.0
TINY_NAME = "tests.variants.tiny_specs:TINY"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIPGATE_HOME", str(folder / "mipgate"))
        build(TINY_NAME, Catalog(root=folder / "store"), this_host(), Lines(), recipes=["fp16"])
    return folder


@pytest.fixture
def home(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("MIPGATE_HOME", str(tmp_path / "mipgate"))
    return tmp_path / "mipgate"


@pytest.fixture
def catalog(home: Path) -> Catalog:
    return Catalog(root=home.parent / "store")


def put(home: Path, name: str, days: float, size: int = 1000) -> None:
    """A file that was last used so many days ago."""
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (NOW - days * DAY,) * 2)


def names(found: Collected) -> list[str]:
    return [item.name for item in found.items]


def test_what_is_old_goes_and_what_is_young_stays(home: Path, catalog: Catalog) -> None:
    for days in (1, 40):
        put(home, f"checkpoints/{days}.safetensors", days)
        put(home, f"searches/model-{days}/journal.log", days)
    put(home, "work/tmpabc/model.onnx", 2)
    put(home, "work/tmpnew/model.onnx", 0.5)
    put(home, "references/net.safetensors", 400)
    for folder in ("searches/model-1", "searches/model-40", "work/tmpabc", "work/tmpnew"):
        os.utime(home / folder, (0, 0))
    put(home, "references/net-1.checkpoint", 40)
    put(home, "registered/.mine-1234/model.onnx", 2)
    os.utime(home / "registered/.mine-1234", (0, 0))
    gone = [
        "checkpoints/40.safetensors",
        "references/net-1.checkpoint",
        "registered/.mine-1234",
        "searches/model-40",
        "work/tmpabc",
    ]
    tried = collect(catalog, NOW, dry_run=True)
    assert sorted(names(tried)) == gone
    assert (home / gone[0]).exists()
    found = collect(catalog, NOW)
    assert (sorted(names(found)), found.freed_bytes) == (gone, 5000)
    assert found.held_bytes == tried.held_bytes
    assert not any((home / name).exists() for name in gone)
    kept = ("checkpoints/1.safetensors", "searches/model-1", "work/tmpnew", "references/net.safetensors")
    assert all((home / name).exists() for name in kept)
    assert names(collect(catalog, NOW)) == []


def test_what_a_killed_process_was_publishing_goes(home: Path, catalog: Catalog) -> None:
    put(catalog.staging, "123-abcd/model.onnx", 2)
    os.utime(catalog.staging / "123-abcd", (0, 0))
    (name,) = names(collect(catalog, NOW))
    assert name.endswith(".mipgate-staging/123-abcd")
    assert not list(catalog.staging.iterdir())


def test_a_model_without_a_card_stops_no_other(home: Path, catalog: Catalog) -> None:
    for card in catalog.root.glob("tiny/*/card.json"):
        card.write_text("{}")
    put(home, "work/tmpabc/model.onnx", 2)
    os.utime(home / "work/tmpabc", (0, 0))
    assert names(collect(catalog, NOW, quota_bytes=0)) == ["work/tmpabc"]


def test_a_quota_takes_the_oldest_of_what_may_go(home: Path, catalog: Catalog) -> None:
    for days in (1, 2, 3):
        put(home, f"checkpoints/{days}.safetensors", days)
    held = collect(catalog, NOW, dry_run=True).held_bytes
    found = collect(catalog, NOW, quota_bytes=held - 1500)
    assert names(found) == ["checkpoints/3.safetensors", "checkpoints/2.safetensors"]
    assert found.excess_bytes == 0
    assert (home / "checkpoints/1.safetensors").exists()


def test_of_a_models_trained_references_the_last_stays(home: Path, catalog: Catalog) -> None:
    for name, days in (("net-aaa", 50), ("net-bbb", 60), ("other-ccc", 400)):
        put(home, f"references/{name}.safetensors", days)
    assert names(collect(catalog, NOW, unused_s=30 * DAY)) == ["references/net-bbb.safetensors"]
    assert (home / "references/net-aaa.safetensors").exists()


def test_retired_builds_give_way_and_what_serves_never_does(catalog: Catalog) -> None:
    fp16 = catalog.card(TINY.name).find("fp16").id
    full = collect(catalog, NOW, quota_bytes=1)
    assert names(full) == []
    assert full.excess_bytes == full.held_bytes - 1
    for recipe in ("fp16", "fp32"):  # the reference is what others are measured against
        variant = catalog.card(TINY.name).find(recipe).id
        catalog.change(TINY.name, lambda card, variant=variant: card.with_life(variant, Life.RETIRED))
    found = collect(catalog, NOW, quota_bytes=1)
    assert names(found) == [fp16.tag]
    assert catalog.find(fp16) is None
    assert [entry.id.recipe for entry in catalog.card(TINY.name).entries] == ["fp32"]


def test_what_a_running_build_may_need_stays(home: Path, catalog: Catalog) -> None:
    put(home, "checkpoints/old.safetensors", 400)
    put(home, "work/tmpabc/model.onnx", 400)
    with FileLock(home / "locks" / f"build-{TINY.name}.lock"):
        found = collect(catalog, NOW, quota_bytes=1)
    assert (names(found), found.busy) == ([], [TINY.name])
    assert len(names(collect(catalog, NOW))) == 2


def test_replicates_of_a_model_that_only_they_know_stay_while_they_are_built(
    home: Path, catalog: Catalog
) -> None:
    put(home, "replicates/elsewhere/store/model.onnx", 400)
    with FileLock(home / "locks" / "build-elsewhere.lock"):
        found = collect(catalog, NOW, quota_bytes=1)
    assert (names(found), found.busy) == ([], ["elsewhere"])
    assert names(collect(catalog, NOW, quota_bytes=1)) == ["replicates/elsewhere"]
