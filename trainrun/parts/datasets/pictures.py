"""One picture file to one uint8 array: every odd kind of file is either decoded properly or refused with a reason."""

from __future__ import annotations

import io
import os
import stat
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

from trainrun.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# An allow-list: Pillow would start Ghostscript for an EPS, whatever its name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
MOST_PIXELS = 50_000_000
MOST_BYTES = 512 << 20
_LARGE = 8_000_000  # pixels from which on pictures are decoded one at a time, so that many threads do not multiply the memory
_one_large = threading.Lock()
_MOST_SCANS = 100  # a progressive JPEG has about 10; each one costs a pass over all pixels
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # of EXIF's orientations, those that exchange height and width


class BadPicture(Exception):
    """A picture that cannot be decoded as it was meant; the text is the reason."""


def printable(text: str) -> str:
    """The text with everything escaped that could steer a terminal or that is not valid Unicode."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def read_file(path: str, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file; OSError if the system refuses, BadPicture for anything that is not a file of sane size."""
    # Without O_NONBLOCK, opening a FIFO that took the file's place would wait for ever.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadPicture("not a regular file")
        if status.st_size > most:
            raise BadPicture(f"{status.st_size} bytes; the limit is {most}")
        return file.read()


def decode(
    source: str | bytes,
    channels: int,
    size: int | None = None,
    *,
    shrink: int = 1,
    decoder: str = "pillow",
    thorough: bool = False,
    turn: bool = True,
) -> np.ndarray:
    """Decode a file (its path or its bytes) to uint8 [height, width, channels], channels 1 (grey, ITU-R 601) or 3 (RGB).

    With `size`, the middle square is resized to size x size (bilinear, antialiased); a JPEG at least four times as large
    is decoded at a reduced scale that still leaves twice `size`. With a `shrink` of 2, 4 or 8 instead, a JPEG is decoded at that
    fraction of its height and width, rounded up, unless it must be turned, when the short pixels of an edge come to lie first. Turned upright as its EXIF says. Transparency is laid on
    white, for which most cut-outs, icons and drawings are made: a black drawing would vanish on black. 16-bit grey is
    scaled to 0..255. Of an animation, the first frame. `thorough` also finds JPEGs that end early but look complete. Without `turn`
    a picture that EXIF turns is refused, because places in it are counted from the stored corner by some programs, by others from the upright one.
    Raises BadPicture, or OSError where the file cannot be read.
    """
    data = read_file(source) if isinstance(source, str) else source
    if not data:
        raise BadPicture("an empty file")
    if decoder == "torchcodec" and shrink == 1 and turn and data.startswith(b"\xff\xd8"):
        decoded = _decode_jpeg_with_torchcodec(data, channels, size)
        if decoded is not None and not (thorough and ends_early(data)):
            return decoded
    try:
        image = _open(data)
        if image.width * image.height < _LARGE:
            return _upright_pixels(image, data, channels, size, shrink, thorough, turn)
        with _one_large:
            return _upright_pixels(image, data, channels, size, shrink, thorough, turn)
    except BadPicture:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        raise BadPicture(f"not a picture in one of the formats {', '.join(FORMATS)}" if "cannot identify" in text else text) from error


def measure(path: str) -> tuple[int, int]:
    """Height and width of a picture file once it is upright, from its header; raises as `decode` does."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadPicture("not a regular file")
        try:
            image = _open(file)
            if image.format == "TIFF":
                image.load()  # which turns it, and only then do its size and its orientation agree in every version of Pillow
            return image.size if _orientation(image) in _SIDEWAYS else image.size[::-1]
        except BadPicture:
            raise
        except Exception as error:
            raise BadPicture(str(error) or type(error).__name__) from error


def _open(data: bytes | BinaryIO) -> Image.Image:
    from PIL import Image

    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise BadPicture(f"{image.width} x {image.height} pixels; the limit is {MOST_PIXELS // 1_000_000} million")
    if isinstance(data, bytes) and image.format == "JPEG" and image.info.get("progressive") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise BadPicture(f"a progressive JPEG of more than {_MOST_SCANS} scans")
    return image


def _upright_pixels(image: Image.Image, data: bytes, channels: int, size: int | None, shrink: int, thorough: bool, turn: bool) -> np.ndarray:
    import numpy as np
    from PIL import Image, ImageOps

    jpeg = image.format in ("JPEG", "MPO")
    reduced = jpeg and size is not None and min(image.size) >= 4 * size
    if thorough and jpeg:
        image.load()
        if ends_early(data, image):
            raise BadPicture("the JPEG ends early: its last part is missing")
        if reduced:
            image = _open(data)  # what is loaded can no longer be reduced
    if reduced and size:
        image.draft(None, (2 * size, 2 * size))
    turned = _orientation(image) != 1
    if shrink > 1 and jpeg and not turned:
        image.draft(None, (image.width // shrink, image.height // shrink))
    image.load()
    if turned:
        if not turn:
            raise BadPicture("EXIF turns it, and programs differ in which corner its boxes are counted from; save it upright and look at its boxes")
        image = ImageOps.exif_transpose(image)
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    if size and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def _orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and not ({"exif", "xmp"} & image.info.keys()):
        return 1  # to look for one that is not there takes a seventh of the time of a small picture
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise BadPicture("floating-point pixels, which have no agreed range; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadPicture("32-bit integer pixels, which have no agreed range; save it with 8 or 16 bits a channel")
        image = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # LA and PA have no way of their own to RGBA's premultiplied form, so all of them go through RGBA.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def ends_early(data: bytes, image: Image.Image | None = None) -> bool:
    """Whether a JPEG's compressed data stops before its last pixel, though its end marker is there.

    The decoder fills what is missing with mid-grey and tells nobody. So more data is put before the end marker: in a
    complete picture the decoder never looks at it, in one that ends early it fills the gap and the pixels change.
    """
    import numpy as np
    from PIL import Image

    if image is None:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    before = np.asarray(image)
    progressive = bool(image.info.get("progressive"))
    if not progressive and before.size > 64 * 64 * 3:  # in smaller ones the last block is a good part of the picture: always look
        # In a baseline JPEG the gap reaches the last pixel, and of its colour Cr, or K, or grey is stored last: it is the middle value.
        last = before[-1, -1].astype(float)
        middle = abs(last @ (0.701, -0.587, -0.114)) < 2 if last.size == 3 else abs(last.flat[-1] - 127.5) < 2
        if not middle:
            return False
    end = data.rfind(b"\xff\xd9")
    if end < 0:
        return False  # Pillow reports this by itself
    fillers = (b"\xa9\x47\x35\xd6\x1b\x8e", b"\x12\x6b\x5c\x93\xe4\x2d")
    for filler in fillers if progressive else fillers[:1]:  # a progressive scan can read either as "nothing changes here"
        padded = Image.open(io.BytesIO(data[:end] + filler * 16 + data[end:]), formats=("JPEG",))
        if (np.asarray(padded) != before).any():
            return True
    return False


def _decode_jpeg_with_torchcodec(data: bytes, channels: int, size: int | None) -> np.ndarray | None:
    """The picture, or None where Pillow shall look at it: unusual channels or scans, or damage."""
    import numpy as np
    from PIL import Image

    decode_jpeg = torchcodec_decoder()
    found = jpeg_frame(data)
    if found is None or found[2] not in (1, 3) or found[3]:
        return None
    if found[0] * found[1] > MOST_PIXELS:
        raise BadPicture(f"{found[1]} x {found[0]} pixels; the limit is {MOST_PIXELS // 1_000_000} million")
    try:
        pixels = decode_jpeg(data, mode="GRAY" if channels == 1 else "RGB").permute(1, 2, 0).numpy()
    except (RuntimeError, ValueError):
        return None
    if size and pixels.shape[:2] != (size, size):
        height, width, _ = pixels.shape
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))
    return pixels.reshape(*pixels.shape[:2], channels)


def torchcodec_decoder() -> Any:
    """torchcodec's JPEG decoder, which applies EXIF orientation itself."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"data.decoder=torchcodec needs torchcodec 0.16 or newer ({str(error).splitlines()[0]}); "
            "install it with: pip install 'trainrun[torchcodec]'"
        ) from None
    return decode_jpeg


def jpeg_frame(data: bytes) -> tuple[int, int, int, bool] | None:
    """Height, width, channels and whether progressive, from a JPEG's frame header; None if there is none."""
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 5 : place + 7]), int.from_bytes(data[place + 7 : place + 9]), data[place + 9], marker != 0xC0
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None
