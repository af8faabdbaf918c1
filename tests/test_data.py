"""The data sets: known facts and real pixels, packing, the cache, the download, own files."""

import hashlib
import re
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from data import Batches, FactorGrid, ImageData, PackedImages, dsprites, load_dataset, mix
from data.cache import cached, checksum

REAL = Path(__file__).resolve().parents[2] / "shared" / "dsprites_real"
IMAGES = np.full((6, 8, 8), 200, np.uint8)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """A cache folder that is removed again: the file in it has 377 MB."""
    folder = tmp_path_factory.mktemp("cache")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shapes(cache_dir):
    start = time.process_time()
    shapes = load_dataset("dsprites", cache_dir=cache_dir)
    assert time.process_time() - start < 15
    return shapes


# Rendering: facts of the published set


def test_the_grid_runs_through_all_combinations_row_major(shapes):
    factors = shapes.grid.factors(np.arange(len(shapes)))
    assert (factors.shape, factors.dtype) == ((737_280, 5), np.int64)
    rows = [0, 1, 32, 1024, 40_960, 245_760]
    assert factors[rows].tolist() == [[0] * 5, *np.eye(5, dtype=int)[::-1].tolist()]
    assert np.array_equal(np.ravel_multi_index(factors.T, shapes.grid.sizes), np.arange(737_280))


def test_the_set_has_the_known_checksum_and_fingerprint(shapes):
    known = "e457ce7b27525b55531e0646755c1b73"
    assert checksum(shapes.images.packed.numpy()) == known
    assert shapes.fingerprint == (  # published evaluations hold this text
        f"{known} FactorGrid(names=('shape', 'scale', 'orientation', 'posX', 'posY'), "
        "sizes=(3, 6, 40, 32, 32))"
    )


def test_pixel_counts(shapes):
    counts = np.bitwise_count(shapes.images.packed.numpy()).sum(axis=1, dtype=np.int64)
    # Mean 0.042494423521889584 of the published file, as measured by independent public loaders.
    assert round(0.042494423521889584 * 64 * 64 * 737_280) == 128_328_862
    assert counts.sum() == 128_328_864
    assert counts.reshape(shapes.grid.sizes)[:, :, 0, 0, 0].tolist() == [
        [100, 144, 196, 256, 324, 400],
        [76, 104, 144, 184, 228, 288],
        [58, 84, 108, 140, 182, 222],
    ]


def test_checksums_of_published_images(shapes):
    known = {
        0: "72ce20b4425ee404",
        123_920: "31a5cf78a835b6a2",
        245_735: "1240a677ed2c6c71",
        245_760: "9ec91b8a8176e024",
        368_515: "0c50e27d08d4572d",
        491_469: "5a8cf474b03b4636",
        491_520: "f93c94c8a68acb7e",
        616_138: "8e742269462d15f3",
        737_279: "2e6a342ad04c1314",
    }
    for index, start in known.items():
        assert hashlib.sha256(shapes.images.packed[index].numpy()).hexdigest().startswith(start)


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


# Batches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_of_bits_and_of_grey_levels(dtype):
    pixels = np.random.default_rng(1).integers(2, size=(40, 3, 8, 4), dtype=np.uint8)
    packed = torch.from_numpy(np.packbits(pixels.reshape(40, -1), axis=1))
    bits = ImageData("bits", PackedImages(packed, (3, 8, 4)), None, levels=1).to("cpu")
    assert (len(bits), bits.image_shape, bits.images.shape) == (40, (3, 8, 4), (40, 3, 8, 4))
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    grey = ImageData("grey", levels, None)
    for data, index, values in ((bits, [3, 39, 3], torch.tensor(pixels)), (grey, [3, 0], levels)):
        x = data.batch(torch.tensor(index), dtype)
        assert x.dtype == dtype
        assert torch.equal(x, values[index].to(dtype) / data.levels)
        assert (x.min().item(), x.max().item()) == (0, 1)
        with pytest.raises(IndexError):
            data.batch(torch.tensor([40]))


def test_pictures_start_from_reference_images(shapes):
    sums = {name: int(x.sum()) for name, x in shapes.reference_images().items()}
    assert sums == {"square": 369, "ellipse": 291, "heart": 222}
    own = ImageData("own", torch.full((12, 3, 8, 8), 255, dtype=torch.uint8), None)
    assert list(own.reference_images()) == ["image 2", "image 6", "image 10"]


def test_every_image_comes_once_per_epoch_in_a_new_order():
    batches = Batches(10, 4, seed=1)
    stream = torch.cat([batches[step] for step in range(10)]).tolist()
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert stream[:10] != torch.cat([Batches(10, 4, seed=2)[s] for s in range(3)]).tolist()[:10]
    assert sorted(Batches(3, 9, seed=0)[0].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_batch_is_a_function_of_seed_and_step():
    assert Batches(737_280, 4, 0)[0].tolist() == [592002, 414563, 68717, 124987]
    assert Batches(1000, 4, seed=5)[400].tolist() == [770, 917, 313, 835]
    assert (mix(0), mix(1, 2)) == (8147104208329303767, 6804074658870690613)
    seeds = {mix(seed, step, rank) for seed in range(8) for step in range(64) for rank in range(8)}
    assert len(seeds) == 8 * 64 * 8
    assert 0 <= min(seeds) < max(seeds) < 2**63


def test_ranks_share_the_same_batch():
    parts = [Batches(100, 12, 3, rank, 4)[7] for rank in range(4)]
    assert torch.stack(parts, 1).flatten().tolist() == Batches(100, 12, seed=3)[7].tolist()
    for batch_size, processes in ((12, 5), (2, 2)):
        with pytest.raises(ValueError, match=rf"{batch_size} is not .* by {processes} processes"):
            Batches(100, batch_size, 3, 0, processes)


# The cache


def never(*_):
    raise AssertionError("the cache is not used")


def test_the_second_start_maps_the_file_if_its_checksum_is_right(shapes, cache_dir, monkeypatch):
    monkeypatch.setattr(dsprites, "render", never)
    packed = load_dataset("dsprites", cache_dir=cache_dir).images.packed
    assert torch.equal(packed[::1000], shapes.images.packed[::1000])
    monkeypatch.setattr(dsprites, "RENDERED_CHECKSUM", "another")
    with pytest.raises(AssertionError, match="not used"):
        load_dataset("dsprites", cache_dir=cache_dir)


@pytest.fixture
def stored(tmp_path):
    """A small array and the cache file that holds it."""
    array = np.random.default_rng(3).integers(256, size=(50, 512), dtype=np.uint8)
    assert cached(tmp_path / "a.npy", lambda: array) is array
    return array, tmp_path / "a.npy"


def test_a_cache_file_is_mapped_privately(stored):
    array, path = stored
    for expected in (None, checksum(array)):
        again = cached(path, never, expected)
        assert isinstance(again, np.memmap)
        assert np.array_equal(again, array)
        again[:] = 0
    assert [p.name for p in path.parent.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4096],
        lambda data: data[:128] + bytes([data[128] ^ 1]) + data[129:],
    ],
)
def test_a_damaged_cache_is_made_again(stored, damage, capsys):
    array, path = stored
    path.write_bytes(damage(path.read_bytes()))
    assert cached(path, lambda: array, checksum(array)) is array
    message = capsys.readouterr().err
    assert f"the cache {path} is made again" in message
    assert message.count("\n") == 1
    assert np.array_equal(cached(path, never), array)


# The published file


class Trap:
    """Unpickling it makes a file: the metadata of the published npz must never be opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def npz(tmp_path):
    """A small file like the published one, its MD5 and its packed images."""
    imgs = np.random.default_rng(4).integers(2, size=(100, 64, 64), dtype=np.uint8)
    metadata = np.array(Trap(tmp_path / "trapped"), dtype=object)
    np.savez_compressed(tmp_path / "small.npz", imgs=imgs, metadata=metadata)
    md5 = hashlib.md5((tmp_path / "small.npz").read_bytes()).hexdigest()
    yield tmp_path / "small.npz", md5, np.packbits(imgs.reshape(100, -1), axis=1)
    assert not (tmp_path / "trapped").exists()


@pytest.fixture
def url(npz):
    """The address of that file on a local web server."""
    handler = partial(SimpleHTTPRequestHandler, directory=npz[0].parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/{npz[0].name}"
        server.shutdown()


def test_the_published_file_is_downloaded_and_packed(npz, url, tmp_path):
    source, md5, packed = npz
    path = tmp_path / "below" / "official.npz"
    assert np.array_equal(dsprites.read_official(path, url, md5), packed)
    assert path.read_bytes() == source.read_bytes()
    assert np.array_equal(dsprites.read_official(path, f"{url}/none", md5), packed)


def test_a_failed_download_leaves_nothing(npz, url, tmp_path):
    path = tmp_path / "below" / "official.npz"
    for address, md5 in ((url, "0" * 32), (f"{url}/none", npz[1])):
        with pytest.raises(ValueError, match=r"cannot download .* put it at"):
            dsprites.read_official(path, address, md5)
        assert list(path.parent.iterdir()) == []


def test_the_published_file_is_read_only_once(shapes, cache_dir, monkeypatch):
    monkeypatch.setattr(dsprites, "read_official", lambda path: shapes.images.packed.numpy())
    for _ in range(2):
        official = load_dataset("dsprites", source="official", cache_dir=cache_dir)
        assert official.fingerprint == shapes.fingerprint
        monkeypatch.setattr(dsprites, "read_official", never)


def test_another_file_in_the_place_of_the_published_one_is_refused(tmp_path):
    file = tmp_path / "own.npz"
    file.write_bytes(b"not the published file")
    with pytest.raises(ValueError, match=f"dataset.path: {file} is not the published file"):
        load_dataset("dsprites", source="official", path=str(file), cache_dir=tmp_path)
    assert file.read_bytes() == b"not the published file"
    with pytest.raises(ValueError, match=r"dataset.path: x.npz is not allowed with .*=render"):
        load_dataset("dsprites", path="x.npz", cache_dir=tmp_path)


# Own pictures


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 28, 20, 1), (6, 8, 128, 3)])
def test_own_pictures(tmp_path, monkeypatch, shape):
    images = np.random.default_rng(5).integers(256, size=shape, dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, sizes=[2, 3], names=["form", "hue"])
    monkeypatch.chdir(tmp_path)
    own = load_dataset("npz", path="own.npz")
    images = images.reshape(6, *shape[1:3], -1)
    assert own.image_shape == (images.shape[3], *shape[1:3])
    assert (len(own), own.levels, own.grid) == (6, 255, FactorGrid(("form", "hue"), (2, 3)))
    assert torch.equal(own.images, torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert own.batch(torch.tensor([4]))[0, 0, 7, 1].item() == np.float32(images[4, 7, 1, 0]) / 255


TABLE = np.asfortranarray(np.arange(12).reshape(6, 2) / 8)  # no grid


@pytest.mark.parametrize(
    ("labels", "kind", "names", "factors"),
    [
        ({}, "NoneType", None, None),
        ({"sizes": [6]}, "FactorGrid", ("factor0",), [[4], [1]]),
        ({"sizes": [2, 3], "names": [b"a", b"b"]}, "FactorGrid", ("a", "b"), [[1, 1], [0, 1]]),
        ({"factors": [[5], [4], [3], [2], [1], [0]]}, "FactorTable", ("factor0",), [[1], [4]]),
        ({"factors": TABLE, "names": ["x", "y"]}, "FactorTable", ("x", "y"), TABLE[[4, 1]]),
    ],
)
def test_labels_of_own_pictures(tmp_path, labels, kind, names, factors):
    np.savez(tmp_path / "own.npz", images=IMAGES, **labels)
    grid = load_dataset("npz", path=str(tmp_path / "own.npz")).grid
    assert type(grid).__name__ == kind
    if grid is not None:
        assert (grid.names, len(grid)) == (names, 6)
        assert np.array_equal(grid.factors(np.array([4, 1])), factors)


def test_the_fingerprint_depends_on_images_and_factors(tmp_path):
    table, sizes = {"images": IMAGES, "factors": TABLE}, {"images": IMAGES, "sizes": [6]}
    different = [table, table | {"images": IMAGES + 1}, table | {"factors": TABLE[::-1]}]
    different += [table | {"names": ["x", "y"]}, sizes, sizes | {"names": ["x"]}]
    prints = []
    for arrays in [*different, *different]:
        np.savez(tmp_path / "own.npz", **arrays)
        prints.append(load_dataset("npz", path=str(tmp_path / "own.npz")).fingerprint)
    assert len(set(prints)) == len(different)
    assert prints[:6] == prints[6:]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": IMAGES, "Sizes": [6]}, "own.npz holds images, Sizes; allowed"),
        ({"images": IMAGES / 255}, "own.npz: images are float64 (6, 8, 8, 1)"),
        ({"images": IMAGES // 200}, "255 means 1.0; scale them"),
        ({"images": IMAGES, "sizes": [2, 2]}, "there are 6 images, but factors for 4"),
        ({"images": IMAGES, "sizes": [2, 3], "names": ["a", "a"]}, "allowed: 2 different names"),
        ({"images": IMAGES, "names": ["a"]}, "'sizes' or by 'factors', one of the two"),
        ({"images": IMAGES, "factors": [[np.nan]] * 6}, "finite numbers"),
        ({"images": np.array([None])}, "allow_pickle"),
    ],
)
def test_other_content_is_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(reason)):
        load_dataset("npz", path=str(tmp_path / "own.npz"))


def test_a_file_that_is_no_npz_or_has_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(ValueError, match=f"dataset.path: {path} does not exist or is no npz"):
        load_dataset("npz", path=str(path))
    np.savez(path, images=np.full((4, 64, 64), 255, np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"dataset.path: {path} is damaged"):
        load_dataset("npz", path=str(path))


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    array = cached(tmp_path / "file" / "x.npy", lambda: np.arange(3))
    assert array.tolist() == [0, 1, 2]
    assert "no cache: " in capsys.readouterr().err
