"""The tests write every file themselves; where possible its pixels are known without Pillow's decoder."""

import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from evasion.components.common.concurrency import Shared
from evasion.components.common.data import images
from evasion.components.common.data.images import UnreadableImage, decode, decode_png, encode_png

HEIGHT, WIDTH = 6, 8
SHAPE = (HEIGHT, WIDTH, 3)
PIXELS = np.random.default_rng(7).integers(0, 256, SHAPE, dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
GRAY = PIXELS[:, :, :1]
WORDS = np.random.default_rng(8).integers(0, 2**16, (HEIGHT, WIDTH, 4), dtype=np.uint16)
WHITE = np.uint8(255)

# Smooth, so that JPEG changes it little, and of different colours in its four corners.
ROWS, COLUMNS = np.mgrid[:48, :64]
SMOOTH = np.stack([COLUMNS * 4, ROWS * 5, 255 - COLUMNS * 2 - ROWS * 2], axis=-1).astype(np.uint8)
NOISY = np.clip(SMOOTH.astype(int) + np.random.default_rng(9).integers(-20, 20, SMOOTH.shape), 0, 255).astype(np.uint8)


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png(rows: np.ndarray, depth: int, color_type: int, **chunks: bytes) -> bytes:
    """A PNG of any kind, among them those that Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, color_type, 0, 0, 0)
    body = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows)
    extra = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    data = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share))


ALPHA = np.random.default_rng(10).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
MASK = np.where(ALPHA > 127, 255, 0).astype(np.uint8)
PALETTE = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
INDICES = np.asarray(PALETTE)
HIDDEN = int(INDICES[2, 3])  # the palette index that transparent palettes make invisible
WITHOUT_HIDDEN = np.where((INDICES == HIDDEN)[..., None], WHITE, PIXELS)
HIGH = (WORDS >> 8).astype(np.uint8)

EXACT = {
    "png": (saved(PICTURE, "PNG"), PIXELS),
    "bmp": (saved(PICTURE, "BMP"), PIXELS),
    "gif": (saved(PALETTE, "GIF"), PIXELS),
    "webp": (saved(PICTURE, "WEBP", lossless=True), PIXELS),
    "interlaced_gif": (saved(PALETTE, "GIF", interlace=1), PIXELS),
    "palette_png": (saved(PALETTE, "PNG"), PIXELS),
    "palette_bmp": (saved(PALETTE, "BMP"), PIXELS),
    "gray_png": (saved(Image.fromarray(GRAY[:, :, 0]), "PNG"), GRAY.repeat(3, axis=2)),
    "gray_bmp": (saved(Image.fromarray(GRAY[:, :, 0]), "BMP"), GRAY.repeat(3, axis=2)),
    "one_bit_png": (saved(Image.fromarray(MASK > 0), "PNG"), MASK[..., None].repeat(3, axis=2)),
    "rgb_16_bit": (png(WORDS[:, :, :3], 16, 2), HIGH[:, :, :3]),
    "gray_16_bit": (png(WORDS[:, :, 0], 16, 0), HIGH[:, :, :1].repeat(3, axis=2)),
    "rgba": (saved(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG"), over_white(PIXELS, ALPHA)),
    "rgba_webp": (
        saved(Image.fromarray(np.dstack([PIXELS, MASK])), "WEBP", lossless=True, exact=True),
        over_white(PIXELS, MASK),
    ),
    "rgba_16_bit": (png(WORDS, 16, 6), over_white(HIGH[:, :, :3], HIGH[:, :, 3])),
    "gray_alpha": (png(np.dstack([GRAY, ALPHA]), 8, 4), over_white(GRAY.repeat(3, axis=2), ALPHA)),
    "gray_alpha_16_bit": (png(WORDS[:, :, :2], 16, 4), over_white(HIGH[:, :, :1].repeat(3, 2), HIGH[:, :, 1])),
    "transparent_palette": (saved(PALETTE, "PNG", transparency=HIDDEN), WITHOUT_HIDDEN),
    "transparent_gif": (saved(PALETTE, "GIF", transparency=HIDDEN), WITHOUT_HIDDEN),
    "transparent_gray": (
        png(GRAY, 8, 0, tRNS=struct.pack(">H", GRAY[1, 1, 0])),
        np.where(GRAY[1, 1] == GRAY, WHITE, GRAY).repeat(3, axis=2),
    ),
    "transparent_gray_16_bit": (
        png(WORDS[:, :, 0], 16, 0, tRNS=struct.pack(">H", WORDS[1, 1, 0])),
        np.where(WORDS[:, :, :1] == WORDS[1, 1, :1], WHITE, HIGH[:, :, :1]).repeat(3, axis=2),
    ),
    "animated_gif": (saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]), PIXELS),
    "animated_webp": (
        saved(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)], lossless=True),
        PIXELS,
    ),
    "tiff": (saved(PICTURE, "TIFF"), PIXELS),
    **{
        f"{compression}_tiff": (saved(PICTURE, "TIFF", compression=compression), PIXELS)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "palette_tiff": (saved(PALETTE, "TIFF"), PIXELS),
    "gray_tiff": (saved(Image.fromarray(GRAY[:, :, 0]), "TIFF"), GRAY.repeat(3, axis=2)),
    "one_bit_tiff": (saved(Image.fromarray(MASK > 0), "TIFF"), MASK[..., None].repeat(3, axis=2)),
    "gray_16_bit_tiff": (saved(Image.fromarray(WORDS[:, :, 0]), "TIFF"), HIGH[:, :, :1].repeat(3, axis=2)),
    "gray_16_bit_tiff_of_which_0_is_white": (
        saved(Image.fromarray(WORDS[:, :, 0]), "TIFF", tiffinfo={262: 0}),
        255 - HIGH[:, :, :1].repeat(3, axis=2),
    ),
    "rgb_16_bit_tiff": (cv2.imencode(".tiff", WORDS[:, :, 2::-1])[1].tobytes(), HIGH[:, :, :3]),
    "rgba_tiff": (saved(Image.fromarray(np.dstack([PIXELS, ALPHA])), "TIFF"), over_white(PIXELS, ALPHA)),
    "cmyk_tiff": (saved(PICTURE.convert("CMYK"), "TIFF"), PIXELS),
    "tiff_of_two_pages": (saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(180)]), PIXELS),
    "animated_png": (saved(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]), PIXELS),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_lossless_file_gives_its_pixels(name):
    data, expected = EXACT[name]
    pixels = decode(data, SHAPE)
    assert pixels.dtype == np.uint8
    assert pixels.shape == SHAPE
    # One level is rounding, and only where alpha was mixed.
    np.testing.assert_allclose(pixels, expected, atol=1 if "alpha" in name or "rgba" in name else 0)


def test_sixteen_bit_gray_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 48).reshape(HEIGHT, WIDTH).astype(np.uint16)
    pixels = decode(png(ramp, 16, 0), (HEIGHT, WIDTH, 1))[:, :, 0]
    np.testing.assert_allclose(pixels, ramp / 257, atol=1)
    np.testing.assert_array_equal(decode(png(pixels * np.uint16(257), 16, 0), (HEIGHT, WIDTH, 1))[:, :, 0], pixels)


def test_colour_becomes_gray_by_its_brightness():
    expected = PIXELS @ np.array([0.299, 0.587, 0.114])
    pixels = decode(saved(PICTURE, "PNG"), (HEIGHT, WIDTH, 1))
    np.testing.assert_allclose(pixels[:, :, 0], expected, atol=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}, {"subsampling": 0}],
    ids=str,
)
def test_a_jpeg_gives_nearly_its_pixels(options):
    pixels = decode(saved(Image.fromarray(SMOOTH), "JPEG", quality=98, **options), SMOOTH.shape)
    np.testing.assert_allclose(pixels, SMOOTH.astype(int), atol=12)
    assert np.abs(pixels - SMOOTH.astype(int)).mean() < 2


def test_a_jpeg_of_several_pictures_gives_the_first():
    smooth = Image.fromarray(SMOOTH)
    data = saved(smooth, "MPO", save_all=True, append_images=[smooth.rotate(180)], quality=98)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "MPO"  # what most phones write
    np.testing.assert_allclose(decode(data, SMOOTH.shape), SMOOTH.astype(int), atol=12)


@pytest.mark.parametrize("black", [0, 100])
def test_cmyk_jpegs_are_not_negatives(black):
    ink = np.dstack([SMOOTH, np.full(SMOOTH.shape[:2], black, np.uint8)])
    # Pillow writes what Adobe's programs write: an APP14 marker and every ink inverted.
    data = saved(Image.frombytes("CMYK", (64, 48), ink.tobytes()), "JPEG", quality=98)
    assert b"Adobe" in data
    expected = (255 - SMOOTH.astype(float)) * (255 - black) / 255
    np.testing.assert_allclose(decode(data, SMOOTH.shape), expected, atol=12)


AS_SEEN = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", AS_SEEN)
def test_pictures_are_turned_as_exif_says(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98}, "PNG": {}, "TIFF": {}}[form]
    data = saved(Image.fromarray(SMOOTH), form, exif=exif, **options)
    expected = AS_SEEN[orientation](SMOOTH)
    pixels = decode(data, expected.shape)
    np.testing.assert_allclose(pixels, expected.astype(int), atol=12 if form == "JPEG" else 0)


def test_sixteen_bit_gray_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(WORDS[:, :, 0], 16, 0, eXIf=exif.tobytes().removeprefix(b"Exif\0\0"))
    np.testing.assert_array_equal(decode(data, (WIDTH, HEIGHT, 1))[:, :, 0], np.rot90(HIGH[:, :, 0], -1))


@pytest.mark.parametrize("exif", [b"", b"II", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"no TIFF header"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_damaged_exif_leaves_the_picture_as_it_is_stored(exif):
    np.testing.assert_array_equal(decode(png(PIXELS, 8, 2, eXIf=exif), SHAPE), PIXELS)


def test_another_size_is_stretched_bilinearly_with_antialiasing():
    expected = np.asarray(Image.fromarray(NOISY).resize((20, 10), Image.Resampling.BILINEAR))
    pixels = decode(saved(Image.fromarray(NOISY), "PNG"), (10, 20, 3))
    np.testing.assert_array_equal(pixels, expected)
    board = ((ROWS + COLUMNS) % 2 * 255).astype(np.uint8)  # without antialiasing, every pixel is 0 or 255
    shrunk = decode(saved(Image.fromarray(board), "PNG"), (6, 8, 1))
    np.testing.assert_allclose(shrunk, 127.5, atol=16)


def test_a_path_is_read(tmp_path):
    file = tmp_path / "picture"
    file.write_bytes(saved(PICTURE, "PNG"))
    np.testing.assert_array_equal(decode(file, SHAPE), PIXELS)


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart_markers": {"restart_marker_blocks": 3},
    "fine": {"subsampling": 0, "quality": 95, "optimize": True},
}
MODES = ("RGB", "L", "CMYK")


def jpeg(name: str, mode: str = "RGB") -> bytes:
    return saved(Image.fromarray(NOISY).convert(mode), "JPEG", **JPEGS[name])


WHOLE = {
    **{f"{name}_jpeg": jpeg(name) for name in JPEGS},
    **{
        name: EXACT[name][0]
        for name in ("png", "bmp", "gif", "webp", "palette_png", "gray_16_bit", "tiff", "tiff_lzw_tiff")
    },
    "lossy_webp": saved(Image.fromarray(NOISY), "WEBP"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_short_anywhere_is_refused_or_lost_no_pixel(name):
    data = WHOLE[name]
    expected = decode(data, SHAPE)
    step = max(1, len(data) // 300)
    for length in [*range(0, len(data), step), *range(len(data) - 20, len(data))]:
        try:
            pixels = decode(data[:length], SHAPE)
        except UnreadableImage:
            continue
        assert length > 0.8 * len(data)
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_cut_short_and_closed_with_an_end_marker_is_refused(name, mode):
    """Pillow alone would return a picture whose lower part is gray, and libjpeg's warning would be lost."""
    data = jpeg(name, mode)
    start = data.index(b"\xff\xda") + 14
    # The cut may fall between two scans of a progressive file: then the file is a valid, if coarse, picture.
    cuts = range(start, start + 60, 7) if name == "progressive" else range(start, len(data) - 90, 41)
    for cut in cuts:
        kept = data[:cut].rstrip(b"\xff")
        with pytest.raises(UnreadableImage, match=r"^(truncated|corrupt)"):
            decode(kept + b"\xff\xd9", SHAPE)


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_with_zeros_for_its_end_is_refused(name):
    """What a download into a preallocated file leaves behind. Pillow reads it."""
    data = jpeg(name)
    for cut in range(len(data) // 4, len(data) - 2, 53):
        with pytest.raises(UnreadableImage, match=r"^(truncated|corrupt)"):
            decode(data[:cut] + bytes(len(data) - cut), SHAPE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("gray", [127, 128])
def test_a_whole_jpeg_that_ends_in_gray_is_read(name, mode, gray):
    padded = NOISY.copy()
    padded[20:] = gray
    data = saved(Image.fromarray(padded).convert(mode), "JPEG", **JPEGS[name])
    pixels = decode(data + b"\0" * 16, padded.shape)  # a few bytes after the end marker are common
    np.testing.assert_allclose(pixels[36:], gray, atol=2)


def test_an_end_marker_inside_a_thumbnail_does_not_end_the_file():
    exif = b"Exif\0\0" + jpeg("baseline")
    data = saved(Image.fromarray(NOISY), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(data, NOISY.shape), decode(jpeg("baseline"), NOISY.shape))
    with pytest.raises(UnreadableImage, match=r"^truncated"):
        decode(data[:-30] + bytes(30), NOISY.shape)


@pytest.mark.parametrize("reader", [decode, decode_png])
def test_a_png_with_any_bit_flipped_is_refused_or_keeps_its_pixels(reader):
    data = encode_png(PIXELS)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            pixels = reader(bytes(damaged), SHAPE)
        except UnreadableImage:
            continue
        assert position >= len(data) - 12  # the last chunk, which is empty
        np.testing.assert_array_equal(pixels, PIXELS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: the file has 0 bytes"),
        (b"\xff", "not an image"),
        (b"path,label\n1.png,3\n", "not an image"),
        (b"%PDF-1.7\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (saved(PICTURE, "TIFF")[:-30], "truncated"),
        (b"II*\0" + bytes(20), "corrupt"),
        (
            saved(Image.fromarray(GRAY[:, :, 0] / np.float32(255)), "TIFF"),
            "not an image of 8 or 16 bits: a TIFF of mode F",
        ),
        (
            saved(Image.fromarray(GRAY[:, :, 0].astype(np.int32)), "TIFF"),
            "not an image of 8 or 16 bits: a TIFF of mode I",
        ),
        (saved(PICTURE, "PPM"), "not an image"),
        (b"\xff\xd8\xff\xe0", "corrupt"),
        (jpeg("baseline")[:-200], "truncated"),
        (encode_png(PIXELS)[:-30], "truncated"),
        (saved(PICTURE, "BMP")[:-30], "truncated"),
        (saved(PALETTE, "GIF")[:-30], "truncated"),
        (saved(PICTURE, "WEBP", lossless=True)[:-30], "truncated"),
        (png(PIXELS, 8, 2).replace(b"IDAT", b"IDAX"), "corrupt"),
    ],
)
def test_the_reason_is_named(data, reason):
    with pytest.raises(UnreadableImage, match=f"^{reason}"):
        decode(data, SHAPE)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_nothing_but_unreadable_image(data):
    content = bytearray(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 700)))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(content), SHAPE)
    except UnreadableImage:
        return
    assert pixels.shape == SHAPE


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_460, 20_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side):
    bomb = bytearray(encode_png(PIXELS))
    bomb[16:24] = struct.pack(">II", side, side)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(UnreadableImage, match=r"^too large: .*89,478,485 pixels"):
        decode(bytes(bomb), SHAPE)
    with pytest.raises(UnreadableImage, match=r"^not an image of this dataset"):
        decode_png(bytes(bomb), SHAPE)


def test_the_limit_is_pillows_own():
    assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
        elements=st.integers(0, 255),
    )
)
@settings(max_examples=100, deadline=None)
def test_what_is_encoded_comes_back(pixels):
    data = encode_png(pixels)
    assert data == encode_png(pixels.copy(order="F"))
    np.testing.assert_array_equal(decode_png(data, pixels.shape), pixels)
    np.testing.assert_array_equal(decode(data, pixels.shape), pixels)


@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS.astype(np.float32),
        PIXELS[:, :, 0],
        PIXELS[:, :, :2],
        np.dstack([PIXELS, ALPHA]),
        WORDS[:, :, :3],
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_other_pixels_are_not_encoded(pixels):
    with pytest.raises(ValueError, match=r"pixels must be uint8 of shape .* Received: "):
        encode_png(pixels)


@pytest.mark.parametrize("name", ["rgb_16_bit", "rgba", "palette_png", "one_bit_png", "gray_png", "gif"])
def test_decode_png_takes_no_other_file(name):
    with pytest.raises(UnreadableImage, match=r"^not an image of this dataset: an 8-bit RGB PNG of 8x6 pixels"):
        decode_png(EXACT[name][0], SHAPE)


@pytest.mark.parametrize("shape", [(WIDTH, HEIGHT, 3), (HEIGHT, WIDTH, 1), (HEIGHT, WIDTH + 1, 3)])
def test_decode_png_takes_no_other_shape(shape):
    with pytest.raises(UnreadableImage, match=r"^not an image of this dataset"):
        decode_png(encode_png(PIXELS), shape)


def test_decode_png_takes_no_part_of_a_file():
    data = encode_png(PIXELS)
    for length in range(len(data) - 8):
        with pytest.raises(UnreadableImage):
            decode_png(data[:length], SHAPE)


def png_rows(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    """A PNG of these rows, with right checksums whatever they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_png_with_one_of_240_rows_is_truncated():
    row = b"\0" + bytes(range(100))
    assert images.decode(png_rows(100, 240, row * 240), (240, 100, 1)).shape == (240, 100, 1)
    for rows in (1, 239):
        with pytest.raises(UnreadableImage, match=r"^truncated: the PNG's data ends before its picture does"):
            images.decode(png_rows(100, 240, row * rows), (240, 100, 1))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "I;16", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 9)])
def test_a_whole_png_of_any_mode_is_read(mode, size):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    assert images.decode(file.getvalue(), (*size[::-1], 3)).shape == (*size[::-1], 3)


def test_a_whole_interlaced_png_is_read_and_a_cut_one_is_not():
    # 3x5 pixels: passes 1, 3, 4, 5, 6 and 7 have 1, 1, 1, 1x2, 2x... pixels; see the specification, section 8.2.
    sides = [(1, 1), (0, 1), (1, 1), (1, 2), (2, 1), (1, 3), (3, 2)]
    rows = b"".join((b"\0" + bytes(columns)) * count for columns, count in sides if columns)
    assert images.decode(png_rows(3, 5, rows, interlaced=1), (5, 3, 1)).shape == (5, 3, 1)
    with pytest.raises(UnreadableImage, match="truncated"):
        images.decode(png_rows(3, 5, rows[:-4], interlaced=1), (5, 3, 1))


def test_a_side_that_takes_gigabytes_is_refused_before_it_is_decoded():
    with pytest.raises(UnreadableImage, match=r"^too large: 1x80000000 has a side of over 32,768 pixels"):
        images.decode(png_rows(1, 80_000_000, b"\0"), (28, 28, 1))


def test_large_files_are_decoded_one_after_another(monkeypatch):
    """Eight threads decoded as many of the largest files at once, of 268 MB each and more while they are converted."""
    data = saved(PICTURE.resize((300, 200)), "PNG")
    monkeypatch.setattr(images, "_DECODED", Shared(2 * 300 * 200))
    together, most, lock = 0, 0, threading.Lock()
    load = images._load

    def counted(content):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.01)
        try:
            return load(content)
        finally:
            with lock:
                together -= 1

    monkeypatch.setattr(images, "_load", counted)
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(lambda _: decode(data, SHAPE), range(24)))) == 24
    assert most == 2


def test_what_needs_more_than_there_is_waits_until_it_is_alone():
    shared = Shared(1)
    with shared.taken(5):
        pass
    with pytest.raises(ValueError, match="x"), shared.taken(1):
        raise ValueError("x")
    with shared.taken(1):
        pass


# How images of another size are resized.


def test_pictures_are_cut_or_padded_to_the_aspect_ratio_as_keras_does(tmp_path):
    """A white square between black bars, twice as wide as high."""
    from evasion.components.common.data.resizing import Resizing

    picture = np.zeros((32, 64, 1), np.uint8)
    picture[:, 16:48] = 255
    data = encode_png(picture)
    shape = (32, 32, 1)
    distorted, cut, padded = (
        decode(data, shape, Resizing(**options))
        for options in ({}, {"crop_to_aspect_ratio": True}, {"pad_to_aspect_ratio": True})
    )
    assert distorted[:, 10:22].min() == 255
    assert distorted[:, :6].max() == 0
    assert cut.min() == 255
    assert padded[:8].max() == padded[24:].max() == 0
    assert padded[10:22, 10:22].min() == 255


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area", "lanczos3"])
def test_an_enlarged_picture_is_that_of_tensorflow(interpolation):
    """Only where pictures shrink does TensorFlow leave out the antialiasing; `area` is not defined alike."""
    import tensorflow as tf

    from evasion.components.common.data.resizing import Resizing

    rng = np.random.default_rng(0)
    picture = rng.integers(60, 200, (8, 8, 3), dtype=np.uint8)
    ours = decode(encode_png(picture), (16, 16, 3), Resizing(interpolation=interpolation)).astype(float)
    theirs = np.asarray(tf.image.resize(picture, (16, 16), interpolation, antialias=interpolation != "nearest"))
    assert np.abs(ours - theirs).max() < (2 if interpolation != "area" else 1)
