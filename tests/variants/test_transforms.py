"""Texts and pictures become inputs as declared, labels carry names, and what cannot be read is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compression.signature import Signature, TensorSpec
from tests.variants.transform_specs import PICTURE, TEXT, tokenizer
from variants.picture import DecodeImage, ImageSettings
from variants.serving_spec import SpecError, transform
from variants.transform import MAX_TENSOR_BYTES, DeclarationError, TransformError
from variants.transforms import TRANSFORMS, Transforms, open_transforms

NOON = [2, 6, 7, 8, 9, 3]  # [CLS] see you at noon [SEP]


def values(*elements: str | bytes) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = [element.encode() if isinstance(element, str) else element for element in elements]
    return array


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def plain(colour: tuple[int, int, int], width: int = 4, height: int = 4, kind: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), kind)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "tokenizer.json"
    tokenizer().save(str(path))
    return {"tokenizer.json": path}


def text(files: dict[str, Path], *tensors: TensorSpec, **settings: object) -> Transforms:
    signature = replace(TEXT.signature, inputs=tensors) if tensors else TEXT.signature
    return open_transforms([transform("tokenize", **settings)], signature, files)


def picture(dtype: str = "uint8", shape: tuple[int, ...] = (4, 4, 3), **settings: object) -> DecodeImage:
    signature = Signature((TensorSpec("image", dtype, ("batch", *shape)),), ())
    return DecodeImage(ImageSettings.model_validate(settings), signature, {})


# ---- tokenize


def test_texts_are_padded_to_the_longest_of_the_request(files: dict[str, Path]) -> None:
    before = text(files).before
    inputs = before.run(values("see you at noon", "buy"))
    assert inputs["input_ids"].tolist() == [NOON, [2, 4, 3, 0, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int64)}
    TEXT.signature.check_inputs(inputs)
    assert before.run(values("buy"))["input_ids"].shape == (1, 3)


def test_long_texts_are_cut_by_tokens_and_by_characters(files: dict[str, Path]) -> None:
    by_tokens = text(files, max_tokens=4).before.run(values("buy " * 1000))["input_ids"]
    by_characters = text(files, max_characters=7).before.run(values("buy now see you"))["input_ids"]
    assert by_tokens.tolist() == [[2, 4, 4, 3]]
    assert by_characters.tolist() == [[2, 4, 5, 3]]


def test_lengths_grow_in_steps_but_not_beyond_the_longest_taken(files: dict[str, Path]) -> None:
    before = text(files, max_tokens=10, pad_to_multiple_of=8).before
    assert before.run(values("buy"))["input_ids"].shape == (1, 8)
    assert before.run(values("buy " * 7))["input_ids"].shape == (1, 10)


def test_a_fixed_sequence_axis_and_segments_are_filled(files: dict[str, Path]) -> None:
    tensors = [TensorSpec(name, "int32", ("batch", 9)) for name in ("token_type_ids", "input_ids")]
    inputs = text(files, *tensors, max_tokens=9).before.run(values("buy now"))
    assert inputs["input_ids"].tolist() == [[2, 4, 5, 3, 0, 0, 0, 0, 0]]
    assert inputs["token_type_ids"].tolist() == [[0] * 9]
    assert inputs["input_ids"].dtype == np.int32


def test_text_that_is_not_utf_8_is_refused_with_its_row(files: dict[str, Path]) -> None:
    with pytest.raises(
        TransformError, match=r'"text" is not UTF-8 in row 1: .* at byte 2\. Send text in UTF-8'
    ):
        text(files).before.run(values("buy", b"ab\xff"))


def test_one_long_text_among_many_short_ones_fills_no_memory(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("variants.transform.MAX_TENSOR_BYTES", 1000)
    with pytest.raises(TransformError, match=r"become 1024 bytes .* Send fewer rows at a time"):
        text(files).before.run(values("buy " * 40, *[""] * 3))
    assert MAX_TENSOR_BYTES > 1000


def test_short_texts_are_light_and_long_ones_not(files: dict[str, Path]) -> None:
    before = text(files).before
    assert before.is_light(values("buy now"))
    assert not before.is_light(values("buy " * 2000))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pad_token": "<pad>"}, "has no token <pad>"),
        ({"input": "input_ids"}, 'has an input "input_ids" already'),
        ({"file": "vocab.json"}, "has no file vocab.json"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"stride": 1}, "stride"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(files: dict[str, Path], settings: dict, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        text(files, **settings)


def test_inputs_that_no_tokenizer_gives_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(DeclarationError, match=r'"pixels".*input_ids'):
        text(files, TensorSpec("pixels", "int64", ("batch", "sequence")))
    with pytest.raises(DeclarationError, match=r"has 8 tokens, fewer than max_tokens, 256"):
        text(files, TensorSpec("input_ids", "int64", ("batch", 8)))
    (files["tokenizer.json"]).write_text("{}")
    with pytest.raises(DeclarationError, match=r"tokenizer\.json is no tokenizer"):
        text(files)


# ---- image


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("wrap", [bytes, base64.b64encode], ids=["binary", "base64"])
def test_files_become_pixels(kind: str, wrap: type) -> None:
    pixels = picture().run(values(wrap(plain((200, 100, 50), kind=kind)), plain((0, 0, 255))))["image"]
    assert pixels.shape == (2, 4, 4, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[0].astype(int) - [200, 100, 50]).max() <= 3  # JPEG loses a little
    assert (pixels[1] == [0, 0, 255]).all()


def test_every_pixel_is_where_it_was() -> None:
    given = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    file = encoded(Image.fromarray(given))
    assert (picture().run(values(file))["image"][0] == given).all()
    channels_first = picture(shape=(3, 4, 4), layout="NCHW").run(values(file))["image"]
    assert channels_first.flags.c_contiguous
    assert (channels_first[0] == given.transpose(2, 0, 1)).all()


def test_floats_are_normalized_by_channel() -> None:
    decode = picture("float32", mean=[100, 0, 0], deviation=[10, 1, 255])
    pixel = decode.run(values(plain((110, 7, 51))))["image"][0, 0, 0]
    np.testing.assert_allclose(pixel, [1, 7, 0.2], rtol=1e-6)


def test_grey_colour_and_transparent_files_fit_either_number_of_channels() -> None:
    assert picture(shape=(4, 4, 1)).run(values(plain((50, 50, 50))))["image"][0, 0, 0] == [50]
    grey = encoded(Image.new("L", (4, 4), 9))
    clear = encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 0)))
    assert picture().run(values(grey, clear))["image"][:, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]


def test_pictures_of_another_size_are_cropped_stretched_or_refused() -> None:
    halves = Image.new("RGB", (16, 4), (255, 0, 0))
    halves.paste((0, 0, 255), (0, 0, 4, 4))
    file = values(encoded(halves))
    assert (picture().run(file)["image"][0] == [255, 0, 0]).all()  # the blue quarter is beside the middle
    assert picture(resize="stretch").run(file)["image"][0, 0, 0, 2] > 100
    with pytest.raises(TransformError, match=r"has 16 x 4 pixels; expected 4 x 4 in row 0\. Scale it"):
        picture(resize="none").run(file)


def test_a_photograph_is_turned_upright() -> None:
    image = Image.new("RGB", (4, 4), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 4, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    pixels = picture().run(values(buffer.getvalue()))["image"][0]
    assert (pixels[3] == 255).all()
    assert (pixels[:3] == 0).all()


def bomb(width: int, height: int) -> bytes:
    """A PNG's header that promises many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"hello there", "neither PNG, JPEG nor base64 in row 0"),
        (b"", "no readable PNG or JPEG"),
        (b"aGVsbG8=", "no readable PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n", "no readable PNG or JPEG"),
        (plain((1, 2, 3), 64, 64, "JPEG")[:-20], "cannot be decoded"),
        (encoded(Image.new("RGB", (4, 4)), "GIF"), "neither PNG, JPEG nor base64"),
        (encoded(Image.new("I;16", (4, 4))), "Send 8 bits per channel"),
        (bomb(5000, 5000), "unfolds to 5000 x 5000 pixels; at most 16777216 are taken"),
        (bomb(60_000, 60_000), "pixels; at most 16777216 are taken"),
        (plain((0, 0, 0), 64, 64)[:60], "cannot be decoded"),
    ],
)
def test_what_is_no_good_picture_is_refused(file: bytes, said: str) -> None:
    with pytest.raises(TransformError, match=said):
        picture().run(values(file))


def test_many_small_files_fill_no_memory() -> None:
    decode = picture("float32", (2048, 2048, 3))
    with pytest.raises(TransformError, match="Send fewer rows at a time"):
        decode.run(values(*[plain((0, 0, 0))] * 6))


def test_a_small_file_that_unfolds_to_many_pixels_is_not_light() -> None:
    assert picture().is_light(values(plain((0, 0, 0))))
    small = plain((0, 0, 0), 1000, 1000)
    assert len(small) < 16 * 1024
    assert not picture().is_light(values(small))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((4, 4, 5), {}), ((3, 4, 4), {}), ((48,), {}), ((4, 4, 3), {"mean": [1, 2]}), (("h", "w", 3), {})],
)
def test_an_input_that_is_no_picture_is_refused(shape: tuple, settings: dict) -> None:
    with pytest.raises(DeclarationError):
        picture(shape=shape, **settings)


# ---- labels


def labels(**settings: object) -> Transforms:
    given = {"names": ("red", "green", "blue")} | settings
    return open_transforms([transform("labels", **given)], PICTURE.signature, {})


def test_the_best_classes_come_first_with_their_probabilities() -> None:
    logits = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.0001, 0.4999]], np.float32))
    given = labels(top_k=2).after.run({"logits": logits}, {})
    assert given["label"].tolist() == [["green", "red"], ["red", "blue"]]
    np.testing.assert_allclose(given["score"], [[0.7, 0.2], [0.5, 0.4999]], rtol=1e-5)
    assert given["score"].dtype == np.float32
    assert labels().after.run({"logits": logits}, {"top_k": 3})["label"].shape == (2, 3)


@pytest.mark.parametrize(("scores", "expected"), [("raw", 1000.0), ("sigmoid", 1.0), ("softmax", 1.0)])
def test_large_logits_overflow_nothing(scores: str, expected: float) -> None:
    logits = np.array([[-1000, 1000, 0]], np.float32)
    given = labels(scores=scores).after.run({"logits": logits}, {})
    assert given["label"].tolist() == [["green"]]
    assert given["score"].tolist() == [[expected]]


@pytest.mark.parametrize("given", [0, 4, "2", True, 1.0])
def test_top_k_is_a_number_of_classes(given: object) -> None:
    with pytest.raises(TransformError, match="Send one from 1 to 3"):
        labels().after.check({"top_k": given})


@pytest.mark.parametrize(
    "settings", [{"names": ("red", "green")}, {"output": "probs"}, {"top_k": 4}, {"names": ()}]
)
def test_labels_that_do_not_fit_are_refused(settings: dict) -> None:
    with pytest.raises(DeclarationError):
        labels(**settings)


# ---- declared


def test_a_spec_refuses_transforms_that_cannot_work() -> None:
    with pytest.raises(SpecError, match=r'unknown transform "tokenise"\. There are tokenize, image, labels'):
        replace(TEXT, transforms=(transform("tokenise"),))
    with pytest.raises(SpecError, match=r"needs the file tokenizer\.json; the model has none"):
        replace(TEXT, files={})
    with pytest.raises(SpecError, match=r'"samples\.npz" cannot name a file'):
        replace(TEXT, files={"samples.npz": Path})
    assert set(TRANSFORMS) == {"tokenize", "image", "labels"}


def test_only_one_transform_stands_on_each_side() -> None:
    twice = (transform("image"), transform("image", input="other"))
    with pytest.raises(DeclarationError, match="one too many"):
        open_transforms(twice, PICTURE.signature, {})


def test_every_example_can_be_read(files: dict[str, Path]) -> None:
    for opened in (text(files), open_transforms(PICTURE.transforms, PICTURE.signature, {})):
        assert all(len(array) == 1 for array in opened.before.run(values(opened.example)).values())
