"""Decoding, against Pillow and NumPy done by hand, for every odd kind of file."""

from __future__ import annotations

import io
import struct
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainrun.errors import UserError
from trainrun.parts.datasets import pictures
from trainrun.parts.datasets.pictures import BadPicture, decode, ends_early, jpeg_frame, measure, printable

PHOTO = Image.open(Path(__file__).parents[2] / "trainrun" / "data" / "photos10" / "coffee.webp").convert("RGB").resize((120, 90))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_colour_and_grey(kind: str) -> None:
    data = encode(PHOTO, kind)
    assert (decode(data, 3) == np.asarray(PHOTO)).all()
    grey = decode(data, 1)
    assert grey.shape == (90, 120, 1)
    assert np.abs(grey[..., 0] - np.asarray(PHOTO) @ (0.299, 0.587, 0.114)).max() <= 0.51
    assert (decode(encode(PHOTO.convert("L"), kind), 3) == np.asarray(PHOTO.convert("L"))[..., None]).all()


def test_path_and_bytes_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(PHOTO))
    assert (decode(str(tmp_path / "a.jpg"), 3) == decode(encode(PHOTO), 3)).all()
    with pytest.raises(FileNotFoundError):
        decode(str(tmp_path / "b.jpg"), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    # What has to be done to the stored rows, from the EXIF standard: where row 0 and column 0 of the stored picture belong.
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32, 0] = upright[:16, 32:, 1] = upright[16:, :32, 2] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "picture").write_bytes(encode(Image.fromarray(np.ascontiguousarray(undo(upright))), kind, exif=exif, **options))
    decoded = decode(str(tmp_path / "picture"), 3)
    assert decoded.shape == (32, 64, 3) and np.abs(decoded.astype(int) - upright).max() <= 3
    assert measure(str(tmp_path / "picture")) == (32, 64)


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_can_be_decoded_smaller(channels: int, shrink: int) -> None:
    """Each pixel then stands for a square of shrink x shrink, of which it is nearly the mean."""
    image = PHOTO.resize((203, 150)).convert("RGB" if channels == 3 else "L")
    data = encode(image, quality=95)
    found, expected = decode(data, channels, shrink=shrink), np.asarray(Image.open(io.BytesIO(data)).reduce(shrink))
    assert found.shape == (-(-150 // shrink), -(-203 // shrink), channels)
    inside = (slice(None, 150 // shrink), slice(None, 203 // shrink))  # the last ones stand for less
    assert np.abs(found.astype(int) - expected.reshape(found.shape))[inside].mean() < 2
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(encode(image, exif=turned), channels, shrink=shrink).shape == (203, 150, channels)  # as it is
    assert (decode(encode(image, "PNG"), channels, shrink=shrink) == decode(encode(image, "PNG"), channels)).all()


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff\xd8\xff"])
def test_what_has_no_header_is_a_bad_picture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadPicture):
        measure(str(tmp_path / "a.jpg"))
    with pytest.raises(OSError, match="No such file"):
        measure(str(tmp_path / "b.jpg"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_passed_over() -> None:
    data = encode(PHOTO)
    block = b"Exif\0\0II*\0\xff\xff\xff\xffrubbish"
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    assert (decode(broken, 3) == decode(data, 3)).all()


def test_16_bit_grey_is_scaled_and_not_saturated() -> None:
    values = np.array([[0, 1, 128, 129, 257, 1000], [32767, 32896, 40000, 65278, 65535, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert (decode(png(6, 2, 16, 0, rows), 1)[..., 0] == expected).all()
    assert (decode(encode(Image.fromarray(values), "TIFF"), 3)[..., 2] == expected).all()


def test_16_bit_colour() -> None:
    values = np.arange(0, 65536, 65535 // 11, dtype=np.uint16)[:12].reshape(2, 2, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert np.abs(decode(png(2, 2, 16, 2, rows), 3) - values / 257).max() <= 1


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_an_agreed_range_are_refused(mode: str) -> None:
    values = np.full((4, 4), 1e6, np.float32 if mode == "F" else np.int32)
    with pytest.raises(BadPicture, match="no agreed range"):
        decode(encode(Image.fromarray(values), "TIFF"), 3)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, [[0, 64, 128, 255]] * 4
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.abs(decode(encode(Image.fromarray(rgba), kind, **options), 3) - expected).max() <= 1
    grey = Image.fromarray(np.ascontiguousarray(rgba[..., [0, 3]]), "LA")
    assert np.abs(decode(encode(grey, "PNG"), 1) - (200 * alpha + 255 * (1 - alpha))).max() <= 1


def test_palettes_with_and_without_transparency() -> None:
    indexed = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]])
    for kind in ("PNG", "GIF"):
        assert (decode(encode(indexed, kind), 3) == colours).all()
        holed = colours.copy()
        holed[0, 1] = 255
        assert (decode(encode(indexed, kind, transparency=1), 3) == holed).all()
    assert decode(encode(indexed, "PNG", transparency=bytes([255, 128, 0, 255])), 3)[0, 1].tolist() == [127, 255, 127]


def test_a_colour_key_in_an_rgb_png() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decode(encode(image, "PNG", transparency=(1, 2, 3)), 3).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_cmyk_jpeg() -> None:
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(decode(encode(flat, quality=95), 3).astype(int) - (0, 255, 255)).max() <= 3


def test_one_bit_pictures() -> None:
    assert decode(encode(Image.fromarray(np.eye(8, dtype=bool)), "PNG"), 1)[..., 0].tolist() == (np.eye(8) * 255).tolist()


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (64, 64)])
def test_size_cuts_out_the_middle_square_and_resizes(shape: tuple[int, int]) -> None:
    image = PHOTO.resize(shape)
    side, left, top = min(shape), (shape[0] - min(shape)) // 2, (shape[1] - min(shape)) // 2
    expected = image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(decode(encode(image, "PNG"), 3, 32).astype(int) - np.asarray(expected))
    assert difference[1:-1, 1:-1].max() <= 1  # at the border, the pixels beyond the square are blended in, as they should be


def test_large_jpegs_are_reduced_without_harm() -> None:
    data = encode(PHOTO.resize((1000, 750), Image.Resampling.BICUBIC), quality=95)
    square = Image.open(io.BytesIO(data)).crop((125, 0, 875, 750)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(decode(data, 3, 32) - np.asarray(square).astype(int)).mean() < 1.5
    assert (decode(data, 3, 32, thorough=True) == decode(data, 3, 32)).all()  # a check gives the picture that the run gets
    with pytest.raises(BadPicture, match="ends early"):
        decode(data[: len(data) // 2] + b"\xff\xd9", 3, 32, thorough=True)


@pytest.mark.parametrize("size", [(120, 90), (32, 32), (17, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_early_is_found(size: tuple[int, int], mode: str, subsampling: int, progressive: bool) -> None:
    data = encode(PHOTO.resize(size).convert(mode), quality=85, subsampling=subsampling, progressive=progressive)
    whole = decode(data, 3, thorough=True)
    start, damaged = data.rfind(b"\xff\xda") + 20, 0
    for part in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        cut = data[: start + int((len(data) - 2 - start) * part)]
        ended = cut.rstrip(b"\xff") + b"\xff\xd9"
        if (decode(ended, 3) != whole).any():  # the last scan of a progressive JPEG may say nothing
            damaged += 1
            with pytest.raises(BadPicture):
                decode(cut, 3)
            with pytest.raises(BadPicture, match="ends early"):
                decode(ended, 3, thorough=True)
    assert damaged or (progressive and mode == "CMYK")


def test_a_complete_jpeg_with_a_grey_end_is_good() -> None:
    grey = np.array(PHOTO)
    grey[40:] = 128
    for image in (Image.fromarray(grey), Image.new("L", (200, 200), 128), Image.new("RGB", (33, 7), (128, 128, 128))):
        for progressive in (False, True):
            data = encode(image, progressive=progressive)
            assert not ends_early(data) and not ends_early(data + b"junk after the end")


def test_truncated_files_of_other_formats_are_found() -> None:
    for kind in ("PNG", "WEBP", "BMP", "TIFF", "PPM"):
        data = encode(PHOTO, kind)
        with pytest.raises(BadPicture):
            decode(data[: len(data) // 2], 3)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(BadPicture):
        decode(data, 3)


def test_an_eps_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    eps = encode(PHOTO, "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was called"))
    with pytest.raises(BadPicture, match="not a picture in one of the formats JPEG"):
        decode(eps, 3)


@pytest.mark.filterwarnings("ignore:Image size")
def test_pictures_of_too_many_pixels_are_refused_at_once() -> None:
    with pytest.raises(BadPicture, match="the limit is 50 million"):
        decode(png(13000, 13000, 8, 0, b""), 3)
    with pytest.raises(BadPicture):
        decode(png(60000, 60000, 8, 0, b""), 3)


def test_a_jpeg_of_too_many_scans_is_refused() -> None:
    data = encode(PHOTO, progressive=True)
    scan = data.rfind(b"\xff\xda")
    with pytest.raises(BadPicture, match="scans"):
        decode(data[:-2] + data[scan:-2] * 100 + data[-2:], 3)


def test_a_fifo_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadPicture, match="not a regular file"):
        decode(str(tmp_path / "a.jpg"), 3)


def test_printable_escapes_what_steers_a_terminal() -> None:
    assert printable("naïve 猫.jpg") == "naïve 猫.jpg"
    assert printable("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_frame(mode: str, progressive: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode(PHOTO.convert(mode), progressive=progressive, exif=exif)
    assert jpeg_frame(data) == (90, 120, len(mode), progressive)
    assert jpeg_frame(data[:20]) is None and jpeg_frame(b"\xff\xd8") is None


def test_torchcodec_missing_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match=r"pip install 'trainrun\[torchcodec\]'"):
        pictures.torchcodec_decoder()


def test_torchcodec_decodes_plain_jpegs_and_leaves_the_rest_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked = []

    def decode_jpeg(source: bytes, *, mode: str) -> torch.Tensor:  # as torchcodec 0.16 has it: CHW, uint8
        asked.append(mode)
        pixels = np.array(Image.open(io.BytesIO(source)).convert("RGB" if mode == "RGB" else "L"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)

    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(decode_jpeg=decode_jpeg))  # type: ignore[arg-type]  # a module is any object with attributes
    data = encode(PHOTO)
    for channels in (1, 3):
        for size in (None, 40):
            ours, pillow = decode(data, channels, size, decoder="torchcodec").astype(int), decode(data, channels, size)
            assert ours.shape == pillow.shape and np.abs(ours - pillow).max() <= 2
    assert asked == ["GRAY", "GRAY", "RGB", "RGB"]
    decode(encode(PHOTO, "PNG"), 3, decoder="torchcodec")
    decode(encode(PHOTO.convert("CMYK")), 3, decoder="torchcodec")
    assert len(asked) == 4
