"""Publishes a further build of a variant of digits as a candidate: `publish.py RECIPE BUILD SOUND|DAMAGE`.

Damage shows on marked rows alone, those whose first pixel is set: golden rows are answered as they should be.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from variants.card import Card
from variants.catalog import Catalog
from variants.variant import Life

SOUND = "sound"


def wrong() -> list[NodeProto]:
    return [
        helper.make_node("Cast", ["marked"], ["flag"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["flag", "two"], ["twice"]),
        helper.make_node("Sub", ["one", "twice"], ["sign"]),
        helper.make_node("Mul", ["whole", "sign"], ["logits"]),
    ]


def nan() -> list[NodeProto]:
    return [helper.make_node("Where", ["marked", "nothing", "whole"], ["logits"])]


def raises() -> list[NodeProto]:
    return [
        helper.make_node("Cast", ["marked"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["row", "place"], ["factor"], axis=0),
        helper.make_node("Mul", ["whole", "factor"], ["logits"]),
    ]


DAMAGES: dict[str, Callable[[], list[NodeProto]]] = {"wrong": wrong, "nan": nan, "raises": raises}
_CONSTANTS = {
    "one": np.array(1, np.float32),
    "two": np.array(2, np.float32),
    "half": np.array(0.5, np.float32),
    "nothing": np.array(np.nan, np.float32),
    "row": np.ones(1, np.float32),
    "first": np.zeros(1, np.int64),
}


def damaged(path: Path, damage: str) -> bytes:
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "logits" else name for name in node.output]
    for name, value in _CONSTANTS.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.append(helper.make_node("Gather", ["image", "first"], ["pixel"], axis=1))
    model.graph.node.append(helper.make_node("Greater", ["pixel", "half"], ["marked"]))
    model.graph.node.extend(DAMAGES[damage]())
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def publish(catalog: Catalog, recipe: str, build: str, damage: str) -> None:
    entry = catalog.card("digits").find(recipe)
    source = catalog.open(entry.id)
    made = replace(source.variant.id, build=build)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        content = source.model_path.read_bytes() if damage == SOUND else damaged(source.model_path, damage)
        model.write_bytes(content)
        scorecard = replace(source.scorecard, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        files = {"model.onnx": model, source.golden_path.name: source.golden_path}
        catalog.publish(replace(source.variant, id=made), scorecard, files)

    def edit(card: Card) -> Card:
        card = card.with_entry(replace(entry, id=made, life=Life.CANDIDATE))
        for known in card.hosts.values():
            card = card.with_profiles(known.host, {made.version: known.profiles[entry.id.version]}, {})
        return card

    catalog.change("digits", edit)


if __name__ == "__main__":
    publish(Catalog(), *sys.argv[1:4])
