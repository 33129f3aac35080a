"""What odd image files become, and what happens to the ones that are no images."""

from __future__ import annotations

import io
import logging
import os
import pickle
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pellucid.data import decode as decode_module
from pellucid.data import images as images_module
from pellucid.data.decode import BadImage, decode, decode_mask, inspect, prepare
from pellucid.data.images import ImageFolder, to_uint8, to_unit
from pellucid.data.sources import Record, of_split, split_of, splits

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
CORNERS = np.array([[RED, GREEN], [BLUE, GREY]], dtype=np.uint8)
"""Top left, top right; bottom left, bottom right: every turn and flip of it differs."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(pixels: np.ndarray, times: int = 8) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(pixels, times, 0), times, 1))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def deep_png(samples: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG of (H, W, C) uint16 by hand: Pillow writes none but grey."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def corners(image: Image.Image) -> np.ndarray:
    """(2, 2, 3): the colours in the middle of each quarter."""
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    h, w = pixels.shape[0] // 4, pixels.shape[1] // 4
    return pixels[[h, 3 * h]][:, [w, 3 * w]]


# ------------------------------------------------------------------------------ one file per mode


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_rgb(kind):
    np.testing.assert_array_equal(corners(decode(encoded(picture(CORNERS), kind))), CORNERS)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_rgb_lossy(kind, options):
    got = corners(decode(encoded(picture(CORNERS), kind, **options))).astype(int)
    assert np.abs(got - CORNERS).max() <= 12


def test_webp_lossless():
    np.testing.assert_array_equal(corners(decode(encoded(picture(CORNERS), "WEBP", lossless=True))), CORNERS)


def test_grey_is_repeated():
    grey = picture(np.array([[0, 85], [170, 255]], dtype=np.uint8))
    expected = np.repeat(np.array([[0, 85], [170, 255]])[..., None], 3, -1)
    np.testing.assert_array_equal(corners(decode(encoded(grey, "PNG"))), expected)


def test_one_bit():
    black_white = picture(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    got = corners(decode(encoded(black_white, "PNG")))
    np.testing.assert_array_equal(got[..., 0], [[0, 255], [255, 0]])


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_alpha_is_composited_on_the_background(background):
    # opaque red, clear red (which must not show), half-clear blue, clear black
    rgba = np.array([[(255, 0, 0, 255), (255, 0, 0, 0)], [(0, 0, 255, 128), (0, 0, 0, 0)]], dtype=np.uint8)
    got = corners(decode(encoded(picture(rgba), "PNG"), background=background)).astype(int)
    half = np.round((np.array(BLUE) * 128 + np.array(background) * 127) / 255)
    assert np.abs(got - np.array([[RED, background], [half, background]])).max() <= 1


def test_alpha_is_kept_when_asked_for():
    rgba = np.array([[(255, 0, 0, 255), (255, 0, 0, 0)], [(0, 0, 255, 128), (0, 0, 0, 7)]], dtype=np.uint8)
    kept = decode(encoded(picture(rgba), "PNG"), background=None)
    assert kept.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(kept)[[4, 12]][:, [4, 12]], rgba)
    opaque = decode(encoded(picture(CORNERS), "PNG"), background=None)
    assert (np.asarray(opaque)[..., 3] == 255).all()


def test_grey_with_alpha():
    la = picture(np.array([[(100, 255), (100, 0)], [(0, 255), (0, 0)]], dtype=np.uint8))
    assert la.mode == "LA"
    got = corners(decode(encoded(la, "PNG")))
    np.testing.assert_array_equal(got[..., 0], [[100, 255], [0, 255]])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_palette(kind):
    palette = picture(CORNERS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    np.testing.assert_array_equal(corners(decode(encoded(palette, kind))), CORNERS)


def test_palette_with_transparency():
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (8, 0, 16, 16))
    got = corners(decode(encoded(palette, "PNG", transparency=1)))
    np.testing.assert_array_equal(got, [[RED, (255, 255, 255)], [RED, (255, 255, 255)]])


def test_colour_key_transparency():
    got = corners(decode(encoded(picture(CORNERS), "PNG", transparency=BLUE)))
    np.testing.assert_array_equal(got, [[RED, GREEN], [(255, 255, 255), GREY]])


RAMP = np.array([[0, 16_448], [32_896, 65_535]], dtype=np.uint16)  # 64 and 128 times 257
RAMP_8 = [[0, 64], [128, 255]]


@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "rgb", "grey-alpha", "rgba"])
def test_16_bit_png_is_scaled_not_clipped(colour):
    big = np.repeat(np.repeat(RAMP, 8, 0), 8, 1)[..., None]
    opaque = np.full_like(big, 65_535)
    samples = {0: [big], 2: [big] * 3, 4: [big, opaque], 6: [big] * 3 + [opaque]}[colour]
    got = corners(decode(deep_png(np.concatenate(samples, -1), colour)))
    np.testing.assert_array_equal(got, np.repeat(np.array(RAMP_8)[..., None], 3, -1))


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_deep_tiff_is_scaled(dtype):
    deep = picture(RAMP.astype(dtype))
    np.testing.assert_array_equal(corners(decode(encoded(deep, "TIFF")))[..., 0], RAMP_8)


def test_16_bit_ramp_keeps_its_levels():
    ramp = Image.fromarray(np.arange(65_536, dtype=np.uint16).reshape(256, 256))
    grey = np.asarray(decode(encoded(ramp, "PNG")))[..., 0].astype(int).ravel()
    assert len(np.unique(grey)) == 256
    assert (np.diff(grey) >= 0).all()
    assert np.abs(grey - np.arange(65_536) / 257).max() <= 0.5


def test_float_tiff():
    real = picture(np.array([[0, 0.25], [0.5, 1]], dtype=np.float32))
    np.testing.assert_array_equal(corners(decode(encoded(real, "TIFF")))[..., 0], [[0, 64], [128, 255]])


@pytest.mark.parametrize("pixels", [np.full((4, 4), 2, np.float32), np.full((4, 4), np.nan, np.float32)])
def test_float_out_of_range_is_refused(pixels):
    with pytest.raises(BadImage, match=r"outside 0\.\.1"):
        decode(encoded(Image.fromarray(pixels), "TIFF"))


def test_32_bit_out_of_range_is_refused():
    with pytest.raises(BadImage, match="outside"):
        decode(encoded(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"))


@pytest.mark.parametrize(("kind", "options", "slack"), [("TIFF", {}, 0), ("JPEG", {"quality": 95}, 12)])
def test_cmyk(kind, options, slack):
    ink = np.array([[(0, 255, 255, 0), (255, 0, 255, 0)], [(255, 255, 0, 0), (0, 0, 0, 127)]], dtype=np.uint8)
    image = Image.frombytes("CMYK", (16, 16), np.repeat(np.repeat(ink, 8, 0), 8, 1).tobytes())
    got = corners(decode(encoded(image, kind, **options))).astype(int)
    assert np.abs(got - CORNERS).max() <= slack


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    upright = picture(np.repeat(CORNERS, 2, 1))  # twice as wide as high
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    data = encoded(stored, kind, exif=exif, **options)
    got = decode(data)
    assert got.size == upright.size
    assert np.abs(corners(got).astype(int) - CORNERS).max() <= 12
    header = inspect(data)
    assert header.rotated == (orientation > 1)
    assert (header.width, header.height) == got.size


def test_broken_exif_does_not_spoil_the_picture():
    data = encoded(picture(CORNERS), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    assert np.abs(corners(decode(data)).astype(int) - CORNERS).max() <= 12


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    rest = [Image.new("RGB", (16, 16), GREEN), Image.new("RGB", (16, 16), RED)]
    data = encoded(picture(CORNERS), kind, save_all=True, append_images=rest, **options)
    assert inspect(data).frames == 3
    np.testing.assert_array_equal(corners(decode(data)), CORNERS)


# ------------------------------------------------------------------------------------ bad files


def test_truncated_at_any_point():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        whole = encoded(noise, kind)
        for share in (0.02, 0.3, 0.6, 0.9):
            with pytest.raises(BadImage):
                decode(whole[: int(len(whole) * share)])


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["", "JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]))
def test_garbage_is_never_anything_but_a_bad_image(garbage, kind):
    """Also behind a true header: whatever Pillow trips over, callers see one exception."""
    prefix = encoded(Image.new("RGB", (5, 4)), kind)[:40] if kind else b""
    with suppress(BadImage):
        assert decode(prefix + garbage).mode == "RGB"


@settings(deadline=None)
@given(st.data())
def test_damaged_files_are_never_anything_but_a_bad_image(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
    whole = bytearray(encoded(picture(CORNERS, 3), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for reader in (decode, inspect, decode_mask):
        with suppress(BadImage):
            reader(bytes(whole))


def test_empty(tmp_path):
    (tmp_path / "a.jpg").touch()
    for source in (b"", tmp_path / "a.jpg"):
        with pytest.raises(BadImage, match="empty"):
            decode(source)


def test_not_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(BadImage, match="not an image"):
        decode(tmp_path / "a.jpg")


def test_formats_off_the_list_are_refused():
    for kind in ("PCX", "TGA", "SGI", "EPS"):
        with pytest.raises(BadImage, match="not an image"):
            decode(encoded(picture(CORNERS), kind))


def test_contents_decide_and_not_the_name(tmp_path):
    (tmp_path / "really.jpg").write_bytes(encoded(picture(CORNERS), "PNG"))
    np.testing.assert_array_equal(corners(decode(tmp_path / "really.jpg")), CORNERS)
    assert inspect(tmp_path / "really.jpg").format == "PNG"


@pytest.mark.parametrize(("width", "height"), [(9_500, 9_500), (30_000, 30_000)])
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_bombs_are_refused_before_they_are_decoded(width, height, limit, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    bomb = deep_png(np.zeros((1, 1, 1), np.uint16), 0)
    fields = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    bomb = bomb[:16] + fields + struct.pack(">I", zlib.crc32(b"IHDR" + fields)) + bomb[33:]
    with pytest.raises(BadImage, match="limit"):
        decode(bomb)
    assert not recwarn.list


def test_pickles_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "a.png").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadImage):
        decode(tmp_path / "a.png")
    assert not (tmp_path / "sprung").exists()


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in [
        ("loop.png", "symbolic links"),
        ("dangling.png", "link to nothing"),
        ("missing.png", "no such file"),
        ("folder.png", "a folder"),
        ("pipe.png", "not a regular file"),  # and it does not wait for a writer
    ]:
        with pytest.raises(BadImage, match=reason) as caught:
            decode(tmp_path / name)
        assert caught.value.name.endswith(name)
    (tmp_path / "locked.png").write_bytes(encoded(picture(CORNERS), "PNG"))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decode_module.Path, "open", refuse)  # chmod does not stop root
    with pytest.raises(BadImage, match="no permission"):
        decode(tmp_path / "locked.png")


# ----------------------------------------------------------------------------- squares and masks


def test_unit_range_is_exact_and_inverts():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    x = to_unit(levels)
    assert x.shape == (1, 3, 16, 16)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert x.min().item() == -1
    assert x.max().item() == 1
    np.testing.assert_array_equal(to_uint8(x), levels)
    np.testing.assert_array_equal(to_uint8(torch.full((1, 1, 2, 2), 7.0)), 255)
    with pytest.raises(ValueError, match="uint8"):
        to_unit(np.zeros((1, 4, 4, 3)))


def test_prepare_resizes_the_short_side_and_takes_the_centre():
    rng = np.random.default_rng(0)
    for height, width in [(24, 48), (60, 24), (24, 24)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        whole = np.asarray(image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)).astype(int)
        top, left = (whole.shape[0] - 12) // 2, (whole.shape[1] - 12) // 2
        assert np.abs(prepare(image, 12) - whole[top : top + 12, left : left + 12]).max() <= 1
        assert prepare(image, 12, 1).shape == (12, 12, 1)
    with pytest.raises(ValueError, match="channels"):
        prepare(image, 12, 2)


def test_prepare_antialiases():
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(prepare(Image.fromarray(stripes), 16).astype(int) - 127.5).max() < 3


def test_reduced_decoding_stays_close_to_the_full_one():
    y, x = np.mgrid[0:900, 0:1200] / 100
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(3 * y)], -1) * 100 + 128
    data = encoded(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=92)
    reduced = decode(data, at_least=128)
    assert reduced.size == (300, 225)  # a quarter: an eighth would be below 128
    full = prepare(decode(data), 64).astype(int)
    assert np.abs(prepare(reduced, 64) - full).mean() < 1
    assert np.abs(prepare(reduced, 64) - full).max() <= 8


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([[0, 255], [255, 0]], "L", [[0, 1], [1, 0]]),
        ([[0, 100], [200, 255]], "L", [[0, 0], [1, 1]]),  # antialiased black and white
        ([[0, 1], [2, 3]], "L", [[0, 1], [2, 3]]),
        ([[0, 1], [2, 255]], "P", [[0, 1], [2, 0]]),
        ([[0, 255], [255, 255]], "1", [[0, 1], [1, 1]]),
        ([[0, 255], [255, 0]], "RGB", [[0, 1], [1, 0]]),
    ],
)
def test_masks(values, mode, expected):
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    elif mode != "L":
        image = image.convert(mode)
    np.testing.assert_array_equal(np.asarray(decode_mask(encoded(image, "PNG"))), expected)


def test_ambiguous_masks_are_refused():
    with pytest.raises(BadImage, match="200"):
        decode_mask(encoded(Image.fromarray(np.array([[0, 200]], dtype=np.uint8)), "PNG"))
    with pytest.raises(BadImage, match="colour"):
        decode_mask(encoded(picture(CORNERS), "PNG"))


# ---------------------------------------------------------------------------------------- folders


def fill(folder: Path, count: int, size: int = 12, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i:04}.png")


def test_folder_gives_the_pixels_of_its_files(tmp_path):
    fill(tmp_path, 7, size=8)
    data = ImageFolder(tmp_path, 8)
    assert (len(data), data.shape, data.class_names) == (7, (3, 8, 8), ())
    order = np.array([5, 0, 5])
    batch = data.batch(order)
    for pixels, index in zip(to_uint8(batch.x0), order, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(tmp_path / data.keys[index])))
    with pytest.raises(IndexError, match="7"):
        data.batch(np.array([7]))
    with pytest.raises(IndexError):
        data.batch(np.array([-1]))


def test_odd_names_links_and_clutter(tmp_path):
    root = tmp_path / "bilder"
    fill(root / "früh ling", 2)
    fill(root / "日本", 2, seed=1)
    os.rename(root / "日本/0000.png", root / "日本/e\u0301moji 🐸.png")
    os.rename(os.fsencode(root / "日本/0001.png"), os.fsencode(root / "日本") + b"/\xff\xfe.png")
    (root / "日本/back").symlink_to(root, target_is_directory=True)
    (root / "日本/again").symlink_to(root / "日本", target_is_directory=True)
    (root / ".hidden.png").write_bytes(b"x")
    (root / "日本/._a.png").write_bytes(b"resource fork")
    (root / "Thumbs.db").write_bytes(b"x")
    data = ImageFolder(root, 8)
    assert len(data) == 4
    assert data.class_names == ("früh ling", "日本")
    assert data.batch(np.arange(4)).labels.tolist() == [0, 0, 1, 1]
    assert any("\u00e9moji" in key for key in data.keys)  # composed, whatever the file system keeps


def test_one_sub_folder_is_no_class(tmp_path):
    fill(tmp_path / "jpg", 4)
    assert ImageFolder(tmp_path, 8).class_names == ()


def test_labelled_segmentation_folder(tmp_path):
    fill(tmp_path / "images", 3, size=8)
    (tmp_path / "masks").mkdir()
    truth = np.zeros((8, 8), dtype=np.uint8)
    truth[2:5, 3:6] = 255
    for i in range(3):
        Image.fromarray(truth).save(tmp_path / "masks" / f"{i:04}.png")
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == ()
    np.testing.assert_array_equal(data.batch(np.array([1])).masks[0], truth // 255)
    (tmp_path / "masks/0002.png").unlink()
    with pytest.raises(ValueError, match="no mask of the same name"):
        ImageFolder(tmp_path, 8)
    Image.fromarray(truth[:, :4]).save(tmp_path / "masks/0002.png")
    with pytest.raises(ValueError, match="image is 8x8 and mask 4x8"):
        ImageFolder(tmp_path, 8)


def test_few_bad_files_are_left_out_with_one_warning(tmp_path, caplog):
    fill(tmp_path, 200, size=4)
    (tmp_path / "0100.png").write_bytes(b"not a png")
    (tmp_path / "0150.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        data = ImageFolder(tmp_path, 4)
    assert len(data) == 198
    assert [name for name, _ in data.bad] == ["0100.png", "0150.png"]
    assert len(caplog.records) == 1
    assert "0100.png: not an image" in caplog.text
    pixels = to_uint8(data.batch(np.array([100, 148])).x0)  # the neighbours moved up
    np.testing.assert_array_equal(pixels[0], np.asarray(Image.open(tmp_path / "0101.png")))
    np.testing.assert_array_equal(pixels[1], np.asarray(Image.open(tmp_path / "0149.png")))


def test_many_bad_files_stop_with_the_list(tmp_path):
    fill(tmp_path, 200, size=4)
    for i in (3, 4, 5):
        (tmp_path / f"{i:04}.png").write_bytes(b"not a png")
    with pytest.raises(ValueError, match="3 of 200") as caught:
        ImageFolder(tmp_path, 4)
    assert all(f"{i:04}.png" in str(caught.value) for i in (3, 4, 5))


def test_the_limit_is_a_share_of_the_collection(tmp_path):
    """One bad file of 200 is half a per cent, also when it falls into a split of eight."""
    fill(tmp_path, 200, size=4)
    val = ImageFolder(tmp_path, 4, split="val")
    (tmp_path / val.keys[0]).write_bytes(b"not a png")
    assert ImageFolder(tmp_path, 4, split="val").keys == val.keys[1:]
    for key in val.keys[1:3]:
        (tmp_path / key).write_bytes(b"not a png")
    with pytest.raises(ValueError, match="over the limit"):
        ImageFolder(tmp_path, 4, split="val")


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="not there"):
        ImageFolder(tmp_path / "missing", 8)
    with pytest.raises(ValueError, match="no images"):
        ImageFolder(tmp_path, 8)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match="not a folder"):
        ImageFolder(tmp_path / "a.txt", 8)


# ------------------------------------------------------------------------------------------ cache


def everything(data) -> np.ndarray:
    return to_uint8(data.batch(np.arange(len(data))).x0)


def test_kept_squares_are_the_decoded_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "CACHE_FROM", 10)
    fill(tmp_path / "in", 300, size=6)
    (tmp_path / "in/0007.png").write_bytes(b"bad")
    cache = tmp_path / "cache"
    plain = ImageFolder(tmp_path / "in", 6, limit=None, budget=1 << 30, cache=tmp_path / "other")
    first = ImageFolder(tmp_path / "in", 6, cache=cache)
    made = sorted(cache.rglob("*.npy"))
    monkeypatch.setattr(images_module, "_square", None)  # decoding again would fail
    second = ImageFolder(tmp_path / "in", 6, cache=cache)
    mapped = ImageFolder(tmp_path / "in", 6, cache=cache, budget=1)
    assert isinstance(mapped._pixels, np.memmap)
    for other in (first, second, mapped):
        np.testing.assert_array_equal(everything(other), everything(plain))
        assert (other.keys, other.bad, other.fingerprint) == (plain.keys, plain.bad, plain.fingerprint)
    assert sorted(cache.rglob("*.npy")) == made
    assert not list(cache.rglob("*.part-*"))


def test_damaged_or_poisoned_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "CACHE_FROM", 10)
    fill(tmp_path / "in", 30, size=6)
    cache = tmp_path / "cache"
    good = everything(ImageFolder(tmp_path / "in", 6, cache=cache))
    (kept,) = cache.rglob("pixels.npy")

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    for contents in (stream.getvalue(), b"", kept.read_bytes()[:500], pickle.dumps(Trap())):
        kept.write_bytes(contents)
        np.testing.assert_array_equal(everything(ImageFolder(tmp_path / "in", 6, cache=cache)), good)
    assert not (tmp_path / "sprung").exists()
    assert kept.stat().st_size > 30 * 6 * 6 * 3


def test_a_changed_file_is_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "CACHE_FROM", 10)
    fill(tmp_path / "in", 30, size=6)
    before = everything(ImageFolder(tmp_path / "in", 6))
    Image.new("RGB", (6, 6), RED).save(tmp_path / "in/0003.png")
    after = everything(ImageFolder(tmp_path / "in", 6))
    assert (after[3] == RED).all()
    np.testing.assert_array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))


def test_folders_that_look_alike_from_outside_do_not_share_a_cache(tmp_path, monkeypatch):
    """Equal names, sizes and times, as archives unpack them, and other pixels."""
    monkeypatch.setattr(images_module, "CACHE_FROM", 10)
    for name, seed in (("a", 0), ("b", 1)):
        fill(tmp_path / name, 12, size=6, seed=seed)
        for path in (tmp_path / name).iterdir():
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
            os.utime(path.with_suffix(".bmp"), (0, 0))
    assert not (
        everything(ImageFolder(tmp_path / "a", 6)) == everything(ImageFolder(tmp_path / "b", 6))
    ).all()
    monkeypatch.chdir(tmp_path / "a")
    here = everything(ImageFolder(".", 6))
    monkeypatch.chdir(tmp_path / "b")
    assert not (everything(ImageFolder(".", 6)) == here).all()


def test_no_room_for_the_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images_module, "CACHE_FROM", 10)
    fill(tmp_path / "in", 30, size=6)
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert len(ImageFolder(tmp_path / "in", 6, cache=tmp_path / "file")) == 30
    assert "not kept" in caplog.text
    with pytest.raises(ValueError, match="PELLUCID_CACHE"):
        ImageFolder(tmp_path / "in", 6, cache=tmp_path / "file", budget=1)


def test_fingerprint_follows_what_the_samples_depend_on(tmp_path):
    fill(tmp_path / "a", 5)
    prints = {
        ImageFolder(tmp_path / "a", 8).fingerprint,
        ImageFolder(tmp_path / "a", 16).fingerprint,
        ImageFolder(tmp_path / "a", 8, 1).fingerprint,
        ImageFolder(tmp_path / "a", 8, limit=3).fingerprint,
        ImageFolder(tmp_path / "a", 8, background=(0, 0, 0)).fingerprint,
    }
    assert len(prints) == 5
    assert ImageFolder(tmp_path / "a", 8).fingerprint in prints


# ----------------------------------------------------------------------------------------- splits


@settings(deadline=None)
@given(st.sets(st.integers(0, 10**9), max_size=60))
def test_splits_cover_and_do_not_overlap(numbers):
    keys = [f"folder/{n}.jpg" for n in numbers]
    records = [Record(key, None) for key in keys]
    parts = [{r.key for r in of_split(records, split)} for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(keys)
    assert set().union(*parts) == set(keys)
    if len(keys) >= 3:
        assert all(parts)


def test_splits_are_stable_and_near_their_shares():
    keys = [f"{i}.jpg" for i in range(4000)]
    before = dict(zip(keys, splits([Record(k, None) for k in keys]), strict=True))
    more = [*keys, *(f"new{i}.jpg" for i in range(1000))]
    after = dict(zip(more, splits([Record(k, None) for k in more]), strict=True))
    assert all(after[k] == before[k] == split_of(k) for k in keys)
    shares = [list(before.values()).count(s) / 4000 for s in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.015)


def test_declared_splits_are_kept_and_a_missing_one_is_drawn_from_train(tmp_path):
    fill(tmp_path / "train", 60)
    fill(tmp_path / "test", 5, seed=1)
    test = ImageFolder(tmp_path, 8, split="test")
    val = ImageFolder(tmp_path, 8, split="val")
    train = ImageFolder(tmp_path, 8, split="train")
    assert len(test) == 5
    assert len(train) + len(val) == 60
    assert all(key.startswith("train/") for key in (*val.keys, *train.keys))
    assert not set(val.keys) & set(train.keys)


def test_limit_is_a_fixed_subset(tmp_path):
    fill(tmp_path, 20)
    some, more = (ImageFolder(tmp_path, 8, limit=n).keys for n in (5, 10))
    assert len(some) == 5
    assert set(some) < set(more)
    assert list(some) == sorted(some)


def test_black_and_white_may_be_saved_with_a_palette():
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8), "P")
    picture.putpalette([v for i in range(256) for v in (i, i, i)])
    data = io.BytesIO()
    picture.save(data, "PNG")
    assert np.asarray(decode_mask(data.getvalue())).tolist() == [[0, 1], [1, 0]]


def test_indices_with_a_white_border_are_not_taken_for_black_and_white():
    grey = np.zeros((16, 16), np.uint8)
    grey[2:14, 2:14] = 255
    grey[3:13, 3:13] = 15
    data = io.BytesIO()
    Image.fromarray(grey).save(data, "PNG")
    with pytest.raises(BadImage, match="border"):
        decode_mask(data.getvalue())
