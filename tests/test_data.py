"""The data sets: known facts and real pixels, packing, the cache file, the download, own files."""

import hashlib
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from data import DATASETS, FactorGrid, ImageData, PackedImages, cache, dsprites, load_dataset
from data.images import _sent

REPO = Path(__file__).resolve().parents[1]
REAL = REPO.parent / "shared" / "dsprites_real"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """A cache folder that is removed again: the file in it has 377 MB."""
    folder = tmp_path_factory.mktemp("cache")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shapes(cache_dir):
    start = time.perf_counter()
    shapes = load_dataset("dsprites", cache_dir=cache_dir)
    assert time.perf_counter() - start < 15
    return shapes


@pytest.fixture(scope="module")
def pixel_counts(shapes):
    """Number of pixels that are 1, by shape, scale, orientation, posX, posY."""
    counts = np.bitwise_count(shapes.images.packed.numpy()).sum(axis=1, dtype=np.int64)
    return counts.reshape(shapes.grid.sizes)


# The factor grid


def test_grid_round_trip_and_order():
    grid = dsprites.GRID
    factors = grid.factors(np.arange(len(grid)))
    assert len(grid) == 737_280
    assert factors.shape == (737_280, 5)
    assert factors.dtype == np.int64
    assert np.array_equal(grid.index(factors), np.arange(len(grid)))
    assert factors[[0, 1, 32, 1024, 40_960, 245_760]].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("index", [-1, 24])
def test_grid_refuses_rows_outside(index):
    grid = FactorGrid(("a", "b"), (4, 6))
    with pytest.raises(ValueError, match=rf"index is {index}, allowed are 0 \.\.\. 23"):
        grid.factors(np.array([0, index]))


@pytest.mark.parametrize("factors", [[[0, 6]], [[1, 2], [3, -1]]])
def test_grid_names_the_factor_that_is_outside(factors):
    with pytest.raises(ValueError, match=r"factor 'b' is (6|-1), allowed are 0 \.\.\. 5"):
        FactorGrid(("a", "b"), (4, 6)).index(np.array(factors))


def test_grid_refuses_wrong_columns():
    with pytest.raises(ValueError, match=r"columns \('a', 'b'\), got shape \(7, 3\)"):
        FactorGrid(("a", "b"), (4, 6)).index(np.zeros((7, 3), int))


@pytest.mark.parametrize(
    ("names", "sizes"), [(("a",), (2, 3)), (("a", "a"), (2, 3)), ((), ()), (("a",), (0,))]
)
def test_grid_refuses_names_and_sizes_that_do_not_fit(names, sizes):
    with pytest.raises(ValueError, match="factor"):
        FactorGrid(names, sizes)


def test_grid_samples_every_value_equally_and_repeatably():
    grid = dsprites.GRID
    factors = grid.sample(40_000, np.random.default_rng(0))
    assert np.array_equal(factors, grid.sample(40_000, np.random.default_rng(0)))
    for column, size in zip(factors.T, grid.sizes, strict=True):
        share = np.bincount(column, minlength=size) * size / 40_000
        assert len(share) == size
        assert np.abs(share - 1).max() < 0.15  # five standard deviations


# Rendering: facts of the published set


def test_the_fingerprint_of_the_rendered_set_is_computed_from_it(shapes):
    assert replace(shapes, digest=None).fingerprint == shapes.fingerprint


def test_whole_set_has_the_known_checksum(shapes):
    assert cache.checksum(shapes.images.packed.numpy()) == dsprites.RENDERED_CHECKSUM


def test_pixel_counts_by_shape_and_scale(shapes, pixel_counts):
    known = [
        [100, 144, 196, 256, 324, 400],
        [76, 104, 144, 184, 228, 288],
        [58, 84, 108, 140, 182, 222],
    ]
    assert pixel_counts[:, :, 0, 0, 0].tolist() == known


def test_sizes_at_orientation_0(shapes):
    known = [
        [(10, 10), (12, 12), (14, 14), (16, 16), (18, 18), (20, 20)],
        [(12, 8), (16, 8), (18, 10), (20, 12), (22, 12), (26, 14)],
        [(10, 9), (12, 11), (14, 13), (16, 14), (18, 15), (20, 17)],
    ]
    for shape in range(3):
        for scale in range(6):
            x = shapes.images[int(shapes.grid.index([shape, scale, 0, 0, 0]))][0]
            box = (int(x.any(dim=0).sum()), int(x.any(dim=1).sum()))
            assert box == known[shape][scale]


def test_total_is_within_2_pixels_of_the_published_set(pixel_counts):
    # Mean .042494423521889584 of the published file, as measured by independent public loaders.
    published = round(0.042494423521889584 * 64 * 64 * 737_280)
    assert published == 128_328_862
    assert pixel_counts.sum() == 128_328_864
    assert pixel_counts.mean() == pytest.approx(174.06, abs=0.005)


def test_first_and_last_orientation_are_the_same_angle(shapes):
    bits = shapes.images.packed.numpy().reshape(3, 6, 40, -1)
    assert np.array_equal(bits[:, :, 0], bits[:, :, 39])
    assert not np.array_equal(bits[:, :, 0], bits[:, :, 38])


def test_sprites_stay_off_the_border(shapes):
    """Lines 3 ... 60 hold everything but the tip, one pixel, of 16 squares a side on 2 and 61."""
    bits = shapes.images.packed.numpy()
    used = np.unpackbits(np.bitwise_or.reduce(bits, axis=0)).reshape(64, 64)
    squares = np.unpackbits(bits[5 * 40_960 : 6 * 40_960], axis=1).reshape(-1, 64, 64)  # scale 1
    for axis in (0, 1):
        lines = np.flatnonzero(used.any(axis=axis))
        assert (lines.min(), lines.max()) == (2, 61)
        assert squares.sum(axis=(0, 1 + axis))[[2, 61]].tolist() == [16, 16]


@pytest.mark.parametrize(
    ("index", "known"),
    [
        (0, "72ce20b4425ee404"),
        (123_920, "31a5cf78a835b6a2"),
        (245_735, "1240a677ed2c6c71"),
        (245_760, "9ec91b8a8176e024"),
        (368_515, "0c50e27d08d4572d"),
        (491_469, "5a8cf474b03b4636"),
        (491_520, "f93c94c8a68acb7e"),
        (616_138, "8e742269462d15f3"),
        (737_279, "2e6a342ad04c1314"),
    ],
)
def test_checksums_of_published_images(shapes, index, known):
    assert hashlib.sha256(shapes.images.packed[index].numpy()).hexdigest()[:16] == known


def test_rows_and_centres_of_a_small_square(shapes):
    # posX 3 and posY 20 at scale .5: centre (19.1, 36.6), half a side 4.8 px.
    x = shapes.images[int(shapes.grid.index([0, 0, 0, 3, 20]))][0]
    expected = torch.zeros(64, 64, dtype=torch.uint8)
    expected[32:41, 14:24] = 1
    assert torch.equal(x, expected)


def test_fill_agrees_with_a_point_in_polygon_test_of_every_pixel(shapes):
    for index in np.random.default_rng(0).integers(len(shapes), size=12):
        shape, scale, orientation, column, row = shapes.grid.factors(index)
        u, v = dsprites.outlines()[shape]
        angle, size = 2 * np.pi * orientation / 39, 0.5 + 0.1 * scale
        x = 16 + 32 * column / 31 + size * (np.cos(angle) * u + np.sin(angle) * v)
        y = 16 + 32 * row / 31 + size * (np.cos(angle) * v - np.sin(angle) * u)
        x, y = np.floor(256 * x + 0.5), np.floor(256 * y + 0.5)
        centre = 256 * np.arange(64) + 128
        inside = np.zeros((64, 64), bool)
        for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
            crossed = (y0 < centre) != (y1 < centre)  # rows
            with np.errstate(divide="ignore", invalid="ignore"):
                at = x0 + (centre - y0) * (x1 - x0) / (y1 - y0)
            inside ^= crossed[:, None] & (centre[None, :] >= at[:, None])
        assert np.array_equal(shapes.images[int(index)][0].numpy(), inside)


@pytest.mark.skipif(not REAL.exists(), reason=f"no real pixels at {REAL}")
@pytest.mark.parametrize(
    ("file", "images", "wrong"),
    [("dsprites_real_20k.npz", 20_000, 5), ("dsprites_gif_320.npz", 320, 0)],
)
def test_real_pixels(shapes, file, images, wrong):
    real = np.load(REAL / file)
    ours = shapes.images.packed.numpy()[real["index"]]
    assert len(ours) == images
    assert np.bitwise_count(ours ^ real["imgs_packed"]).sum() <= wrong


# Packed images and batches


@pytest.fixture(scope="module")
def small():
    """40 random binary images of shape (3, 8, 4): their pixels, and packed."""
    pixels = np.random.default_rng(1).integers(2, size=(40, 3, 8, 4), dtype=np.uint8)
    packed = np.packbits(pixels.reshape(40, -1), axis=1)
    return torch.from_numpy(pixels), PackedImages(torch.from_numpy(packed), (3, 8, 4))


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(7),
        slice(None),
        slice(3, 30, 4),
        slice(5, 5),
        np.array([3, -40, 39, 3]),
        np.array([2, 250], np.uint8) % 40,
        torch.tensor([1, -2]),
        torch.tensor(4),
        np.array([[1, 2], [3, 4]]),
    ],
    ids=repr,
)
def test_packed_images_index_like_a_tensor(small, index):
    pixels, images = small
    expected = pixels.numpy()[index if not isinstance(index, torch.Tensor) else index.numpy()]
    assert images[index].dtype == torch.uint8
    assert np.array_equal(images[index].numpy(), expected)
    assert images[index].shape == expected.shape


def test_packed_images_run_backwards(small):
    pixels, images = small
    assert torch.equal(images[::-3], pixels.flip(0)[::3])


@pytest.mark.parametrize("index", [40, -41, np.array([0, 40]), torch.tensor([-41])], ids=repr)
def test_packed_images_out_of_range(small, index):
    with pytest.raises(IndexError):
        small[1][index]


@pytest.mark.parametrize("index", [1.0, np.zeros(40, bool), torch.tensor([0.5])], ids=repr)
def test_packed_images_take_only_integers(small, index):
    with pytest.raises(TypeError, match="integers"):
        small[1][index]


def test_packed_images_refuse_bits_of_another_size():
    with pytest.raises(ValueError, match=r"do not make images \(1, 64, 64\)"):
        PackedImages(torch.zeros(2, 511, dtype=torch.uint8))


def test_shapes_of_dsprites(shapes):
    assert len(shapes) == len(shapes.images) == 737_280
    assert shapes.images.shape == (737_280, 1, 64, 64)
    assert shapes.image_shape == (1, 64, 64)
    assert shapes.images[5].shape == (1, 64, 64)
    assert shapes.images[5:8].shape == (3, 1, 64, 64)
    assert shapes.grid.names == ("shape", "scale", "orientation", "posX", "posY")


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_of_packed_images(shapes, dtype):
    index = torch.from_numpy(np.random.default_rng(2).integers(len(shapes), size=64))
    x = shapes.to("cpu").batch(index, dtype)
    assert x.dtype == dtype
    assert torch.equal(x, shapes.images[index].to(dtype) / shapes.levels)
    assert 0 < x.double().mean() < 0.1


def test_an_index_goes_to_a_gpu_without_waiting(monkeypatch):
    class Pinned:
        def to(self, device, non_blocking=False):
            return device.type, non_blocking

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: Pinned())
    assert _sent(torch.arange(3), torch.device("cuda")) == ("cuda", True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_of_grey_levels(dtype):
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    data = ImageData("grey", images, None)
    x = data.batch(torch.tensor([3, 0]), dtype)
    assert x.dtype == dtype
    assert torch.equal(x, images[[3, 0]].to(dtype) / 255)
    assert (x.min().item(), x.max().item()) == (0, 1)


def test_batch_out_of_range(shapes):
    with pytest.raises(IndexError):
        shapes.batch(torch.tensor([737_280]))


def test_grid_must_fit_the_images():
    with pytest.raises(ValueError, match=r"factor sizes \(2, 3\) do not make 5 images"):
        ImageData("x", torch.zeros(5, 1, 8, 8, dtype=torch.uint8), FactorGrid(("a", "b"), (2, 3)))


# The cache file


def test_second_start_maps_the_file(shapes, cache_dir, capsys):
    packed = dsprites.rendered(cache_dir)
    assert isinstance(packed, np.memmap)
    assert np.array_equal(packed[::1000], shapes.images.packed.numpy()[::1000])
    assert capsys.readouterr().err == ""


def test_rendered_again_when_the_file_is_damaged(shapes, cache_dir, capsys):
    path = cache_dir / "dsprites_rendered.bin"
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    packed = dsprites.rendered(cache_dir)
    assert torch.equal(torch.from_numpy(packed), shapes.images.packed)
    assert "expected checksum" in capsys.readouterr().err
    assert isinstance(dsprites.rendered(cache_dir), np.memmap)


@pytest.fixture
def stored(tmp_path):
    """A small array and the cache file that holds it."""
    array = np.random.default_rng(3).integers(256, size=(50, 512), dtype=np.uint8)
    cache.write(tmp_path / "a.bin", array)
    return array, tmp_path / "a.bin"


def test_cache_round_trip(stored):
    array, path = stored
    for expected in (None, cache.checksum(array)):
        found = cache.read(path, array.shape, expected)
        assert np.array_equal(found, array)
    found[:] = 0  # private pages
    assert np.array_equal(cache.read(path, array.shape), array)
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_cache_that_is_not_there_is_no_news(tmp_path, capsys):
    assert cache.read(tmp_path / "none.bin", (1, 512)) is None
    assert capsys.readouterr().err == ""


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "another kind"),
        (lambda data: b"PK" + data[2:], "another kind"),
        (lambda data: data.replace(b"version 1", b"version 2"), "another kind"),
        (lambda data: data.replace(b"(50, 512)", b"(25, 512)"), "another kind"),
        (lambda data: data[:-1], "29,695 bytes instead of 29,696"),
        (lambda data: data[:4096], "4,096 bytes"),
        (lambda data: data + b"\0", "29,697 bytes"),
        (lambda data: _flip(data, 4096), "checksum"),
        (lambda data: _flip(data, 29_695), "checksum"),
        (lambda data: data[:20_000] + bytes(9_696), "checksum"),
    ],
)
def test_cache_notices_damage(stored, damage, reason, capsys):
    array, path = stored
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(path, array.shape) is None
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    cache.write(path, array)
    assert np.array_equal(cache.read(path, array.shape), array)


def test_cache_notices_foreign_content_that_agrees_with_itself(stored, capsys):
    array, path = stored
    cache.write(path, array ^ 1)
    assert cache.read(path, array.shape, cache.checksum(array)) is None
    assert "checksum" in capsys.readouterr().err


def test_cache_that_is_a_folder_or_lies_below_a_file(tmp_path, capsys):
    array = np.ones((2, 512), np.uint8)
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.bin", tmp_path / "file" / "a.bin"):
        cache.write(path, array)
        assert "going on without the cache" in capsys.readouterr().err
        assert cache.read(path, array.shape) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.bin"]


def test_full_disk_leaves_the_old_file_and_no_rest(stored, capsys):
    array, path = stored
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # a write past 1 MiB now fails
    try:
        cache.write(path, np.zeros((8192, 512), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "going on without the cache" in capsys.readouterr().err
    assert np.array_equal(cache.read(path, array.shape), array)
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_two_processes_at_once(tmp_path):
    script = """
import sys, numpy as np
from pathlib import Path
from data import cache
path, mine = Path(sys.argv[1]), np.full((256, 512), int(sys.argv[2]), np.uint8)
print("ready", flush=True)
sys.stdin.readline()
seen = set()
for _ in range(20):
    cache.write(path, mine)
    found = cache.read(path, mine.shape)
    assert found is not None and (found == found[0, 0]).all()
    seen.add(int(found[0, 0]))
print(*seen)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a.bin")]
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen(
            [*command, value], cwd=REPO, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        for value in ("1", "2")
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert (run.returncode, err) == (0, "")
        assert {"1", "2"} >= set(out.split()) != set()
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


# The published file


class Trap:
    """Unpickling it makes a file: the metadata of the published npz must never be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


GRID = FactorGrid(dsprites.GRID.names, (1, 2, 1, 67, 32))  # 4,288 images: more than one piece


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """A small file like the published one, and its packed images."""
    folder = tmp_path_factory.mktemp("official")
    imgs = np.random.default_rng(4).integers(2, size=(len(GRID), 64, 64), dtype=np.uint8)
    imgs[:, 8:] = 0
    arrays = {"imgs": imgs, "latents_classes": np.pad(_all_factors(), ((0, 0), (1, 0)))}
    arrays["metadata"] = np.array(Trap(folder / "trapped"), dtype=object)
    np.savez_compressed(folder / "small.npz", **arrays)
    yield folder / "small.npz", np.packbits(imgs.reshape(len(GRID), -1), axis=1)
    assert not (folder / "trapped").exists()


def _all_factors() -> np.ndarray:
    return GRID.factors(np.arange(len(GRID)))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def server(npz):
    """A local web server: /good, /torn (half of what it promises), /endless (no length), /gone."""
    body = npz[0].read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            self.send_response(404 if self.path == "/gone" else 200)
            if self.path != "/endless":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path == "/torn" else body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("page", ["good", "endless"])
def test_official_downloads_once_and_keeps_the_packed_images(npz, server, tmp_path, page, capsys):
    source, packed = npz
    path = tmp_path / "below" / "official.npz"
    for _ in range(2):
        found = dsprites.official(path, tmp_path, GRID, f"{server.url}/{page}", _md5(source))
        assert np.array_equal(found, packed)
    assert isinstance(found, np.memmap)
    assert _md5(path) == _md5(source)
    path.unlink()  # the packed form is enough
    found = dsprites.official(path, tmp_path, GRID, f"{server.url}/{page}", _md5(source))
    assert np.array_equal(found, packed)
    assert server.requests == [f"/{page}"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("page", "md5", "reason"),
    [
        ("torn", None, r"ended after [\d,]+ of [\d,]+ bytes"),
        ("good", "0" * 32, "its MD5 is [0-9a-f]{32} instead of 0{32}"),
        ("gone", None, "404"),
    ],
)
def test_failed_download_says_what_to_do_and_leaves_nothing(
    npz, server, tmp_path, page, md5, reason
):
    url, path = f"{server.url}/{page}", tmp_path / "official.npz"
    with pytest.raises(ConnectionError, match=reason) as caught:
        dsprites.official(path, tmp_path, GRID, url, md5 or _md5(npz[0]))
    for needed in (url, str(path), "source: render"):
        assert needed in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path):
    with pytest.raises(ConnectionError, match="refused") as caught:
        dsprites.download("http://127.0.0.1:9/file.npz", tmp_path / "file.npz", "0" * 32)
    for needed in ("http://127.0.0.1:9/file.npz", str(tmp_path / "file.npz"), "source: render"):
        assert needed in str(caught.value)


def test_official_reads_a_file_with_another_md5_and_says_so(npz, tmp_path, capsys):
    source, packed = npz
    assert np.array_equal(dsprites.official(source, tmp_path, GRID, md5="0" * 32), packed)
    assert f"not the published file (MD5 {_md5(source)})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"imgs": np.zeros((len(GRID), 64, 63), np.uint8)}, "imgs are uint8"),
        ({"imgs": np.zeros((len(GRID), 64, 64), np.float32)}, "imgs are float32"),
        ({"imgs": np.full((len(GRID), 64, 64), 255, np.uint8)}, "imgs hold 255"),
        ({"latents_classes": np.pad(_all_factors()[::-1], ((0, 0), (1, 0)))}, "row-major"),
        ({"imgs": None}, "imgs.npy"),
        ({"latents_classes": None}, "latents_classes"),
    ],
)
def test_official_refuses_other_content(tmp_path, change, reason):
    arrays = {
        "imgs": np.zeros((len(GRID), 64, 64), np.uint8),
        "latents_classes": np.pad(_all_factors(), ((0, 0), (1, 0))),
    } | change
    path = tmp_path / "other.npz"
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=f"{path} is not a dSprites npz: .*{reason}"):
        dsprites.official(path, tmp_path / "cache", GRID)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_official_refuses_a_torn_file(npz, tmp_path, keep):
    data = npz[0].read_bytes()
    path = tmp_path / "torn.npz"
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match="is not a dSprites npz"):
        dsprites.pack_official(path, GRID)


def test_official_refuses_damaged_pixels(npz, tmp_path):
    data = npz[0].read_bytes()
    path = tmp_path / "damaged.npz"
    path.write_bytes(_flip(data, len(data) // 2))
    with pytest.raises(ValueError, match="is not a dSprites npz"):
        dsprites.pack_official(path, GRID)


def test_official_looks_in_the_folder(tmp_path):
    (tmp_path / dsprites.OFFICIAL_FILE).write_bytes(b"not a zip")
    for path in (None, tmp_path, tmp_path / dsprites.OFFICIAL_FILE):
        with pytest.raises(ValueError, match=f"{dsprites.OFFICIAL_FILE} is not a dSprites npz"):
            load_dataset("dsprites", source="official", path=path, cache_dir=tmp_path)


# Own pictures, and choices that do not exist


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3)])
def test_npz_of_own_pictures(tmp_path, shape):
    images = np.random.default_rng(5).integers(256, size=shape, dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, sizes=[2, 3], names=["form", "hue"])
    own = load_dataset("npz", path=tmp_path / "own.npz")
    channels = shape[3] if len(shape) == 4 else 1
    assert own.image_shape == (channels, 8, 8)
    assert (len(own), own.levels, own.grid) == (6, 255, FactorGrid(("form", "hue"), (2, 3)))
    pixels = images.reshape(6, 8, 8, channels)
    assert own.images[4, channels - 1, 2, 5] == pixels[4, 2, 5, channels - 1]
    assert own.batch(torch.tensor([4]))[0, 0, 7, 1].item() == np.float32(pixels[4, 7, 1, 0]) / 255


def test_npz_without_names_or_sizes(tmp_path):
    images = np.full((6, 8, 8), 200, np.uint8)
    np.savez(tmp_path / "a.npz", images=images, sizes=[6])
    np.savez(tmp_path / "b.npz", images=images)
    assert load_dataset("npz", path=tmp_path / "a.npz").grid == FactorGrid(("factor0",), (6,))
    assert load_dataset("npz", path=str(tmp_path / "b.npz")).grid is None
    np.savez(tmp_path / "c.npz", images=images, sizes=[6], names=np.array([b"size"]))
    assert load_dataset("npz", path=str(tmp_path / "c.npz")).grid.names == ("size",)


def test_the_fingerprint_is_of_images_and_factors(tmp_path):
    prints = set()
    for number, (grey, names) in enumerate([(200, "a"), (200, "a"), (201, "a"), (200, "b")]):
        path = tmp_path / f"{number}.npz"
        np.savez(path, images=np.full((6, 8, 8), grey, np.uint8), sizes=[6], names=[names])
        prints.add(load_dataset("npz", path=path).fingerprint)
    assert len(prints) == 3


IMAGES = np.full((6, 8, 8), 200, np.uint8)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"pictures": IMAGES}, "no array 'images'"),
        ({"images": IMAGES / 255}, r"images are float64 \(6, 8, 8, 1\)"),
        ({"images": IMAGES[0]}, r"images are uint8 \(8, 8\)"),
        ({"images": IMAGES[:, None]}, r"images are uint8 \(6, 1, 8, 8\)"),
        ({"images": IMAGES[:0]}, "nothing above 1"),
        ({"images": IMAGES // 200}, "scale them to 0 ... 255"),
        ({"images": IMAGES, "sizes": [2, 2]}, r"factor sizes \(2, 2\) do not make 6 images"),
        ({"images": IMAGES, "sizes": [2.0, 3.0]}, "row of integers"),
        ({"images": IMAGES, "sizes": np.array([2**63, 2], np.uint64)}, "not too large"),
        ({"images": IMAGES, "sizes": [2, 3], "names": ["a"]}, "a size each"),
        ({"images": IMAGES, "names": ["a"]}, "row of integers"),
        ({"images": IMAGES, "sizes": [6], "names": "a"}, r"names has shape \(\)"),
        ({"images": IMAGES, "sizes": [6], "names": [["a"]]}, r"names has shape \(1, 1\)"),
        ({"images": IMAGES, "Sizes": [6]}, "it holds Sizes; allowed are images, sizes, names"),
        ({"images": IMAGES, "factors": [[0]] * 6}, "evaluate.py --codes"),
        ({"images": np.array([None])}, "allow_pickle"),
    ],
)
def test_npz_refuses_other_content(tmp_path, arrays, reason):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=f"dataset.path: .*own.npz cannot be used: .*{reason}"):
        load_dataset("npz", path=tmp_path / "own.npz")


def test_npz_refuses_what_is_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as file:
        file.writestr("images.npy", b"hello")
    with pytest.raises(ValueError, match=r"dataset.path: .*own.npz cannot be used"):
        load_dataset("npz", path=tmp_path / "own.npz")


def test_archives_that_are_encrypted_are_refused(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=IMAGES, imgs=IMAGES)
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # members, and the directory
        for found in re.finditer(mark, bytes(content)):
            content[found.start() + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset.path: .*own.npz cannot be used"):
        load_dataset("npz", path=path)
    with pytest.raises(ValueError, match=r"own.npz is not a dSprites npz: .*encrypted"):
        dsprites.pack_official(path, GRID)


def test_npz_refuses_another_kind_of_file(tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(pickle.dumps(IMAGES))
    with pytest.raises(ValueError, match="not an npz"):
        load_dataset("npz", path=path)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"name": "dsprite"}, ValueError, "dataset.name is 'dsprite', allowed are dsprites, npz"),
        ({"name": "dsprites", "source": "web"}, ValueError, "allowed are 'render' and 'official'"),
        ({"name": "dsprites", "path": "x.npz"}, ValueError, "'render' reads no file"),
        ({"name": "npz", "path": "/none.npz"}, FileNotFoundError, "dataset.path is /none.npz"),
        ({"name": "npz", "path": "~nobody1/x"}, FileNotFoundError, "dataset.path is ~nobody1/x"),
    ],
)
def test_choices_that_do_not_exist(arguments, error, reason):
    with pytest.raises(error, match=reason):
        load_dataset(**arguments)


def test_every_data_set_has_a_test():
    missing = set(DATASETS) - {"dsprites", "npz"}
    assert not missing, f"write a test of {missing} and name it here"
