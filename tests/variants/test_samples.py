"""Rows on disk: what comes back is what went in, and nothing is ever unpickled."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.data import Split
from compression.signature import Array
from variants.samples import read_golden, read_split, write_golden, write_split

# Writing the same file again and again is what is meant.
on_disk = settings(max_examples=25, suppress_health_check=list(HealthCheck))

NAMES = st.sampled_from(["x", "labels", "input:x", "image.0", "a/b", "file", "allow_pickle", "größe"])
DTYPES = st.sampled_from(["float32", "float16", "int64", "uint8", "bool", "S5", "<U3"])


@st.composite
def splits(draw: st.DrawFn) -> Split:
    rows = draw(st.integers(1, 4))

    def array() -> Array:
        shape = (rows, *draw(st.lists(st.integers(1, 3), max_size=2)))
        return draw(hnp.arrays(np.dtype(draw(DTYPES)), shape))

    inputs = {name: array() for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))}
    return Split(inputs, array() if draw(st.booleans()) else None)


def assert_same(ones: dict[str, Array], others: dict[str, Array]) -> None:
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert (one.dtype, one.shape) == (others[name].dtype, others[name].shape)
        assert one.tobytes() == others[name].tobytes()


@on_disk
@given(splits())
def test_a_split_comes_back(tmp_path: Path, split: Split) -> None:
    write_split(tmp_path / "split.npz", split)
    back = read_split(tmp_path / "split.npz")
    assert_same(dict(back.inputs), dict(split.inputs))
    assert (back.labels is None) == (split.labels is None)
    if back.labels is not None and split.labels is not None:
        assert_same({"labels": back.labels}, {"labels": split.labels})


@on_disk
@given(splits(), splits())
def test_golden_rows_come_back_with_their_outputs(tmp_path: Path, one: Split, other: Split) -> None:
    write_golden(tmp_path / "golden.npz", one.inputs, other.inputs)
    inputs, outputs = read_golden(tmp_path / "golden.npz")
    assert_same(inputs, dict(one.inputs))
    assert_same(outputs, dict(other.inputs))


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_split(tmp_path / "split.npz", Split({"x": np.array([{}, {}], dtype=object)}))


def test_a_file_that_holds_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "sprung").write_text, ("!",))

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    buffer.write(pickle.dumps([Trap()]))
    with ZipFile(tmp_path / "split.npz", "w") as file:
        file.writestr("input:x.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        read_split(tmp_path / "split.npz")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "split.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="pickle"):
        read_split(tmp_path / "split.npz")
