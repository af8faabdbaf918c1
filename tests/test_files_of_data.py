"""Published files and pictures: tiny files with the keys, types and order of the real ones."""

import json
import struct
import tarfile
from math import prod

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from data import DATASETS, FactorGrid, ImageData, load_dataset, mapped, official

GRIDS = {"SHAPES3D": (2, 2, 1, 2, 2, 3), "CARS3D": (3, 4, 2), "SMALLNORB": (5, 10, 2, 3, 2)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Grids of a few images, and parts of seven."""
    for name, sizes in GRIDS.items():
        monkeypatch.setattr(official, name, FactorGrid(getattr(official, name).names, sizes))
    monkeypatch.setattr(official, "MPI3D_SIZES", ((1, 1, 1, 1, 1, 2, 4), (2, 2, 1, 1, 1, 2, 3)))
    monkeypatch.setattr(mapped, "PART", 7)


def numbered(n, side, channels=3):
    """Images (n, side, side, channels) whose pixels are their index; the first one is white."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(channels, 3)
    images[0] = 255
    return images.repeat(side, 1).repeat(side, 2)


def write_shapes3d(root):
    h5py = pytest.importorskip("h5py", reason="h5py is optional; it reads 3D Shapes")
    grid = official.SHAPES3D
    labels = grid.factors(np.arange(len(grid))) / 10 - 0.3
    with h5py.File(root / "3dshapes.h5", "w") as file:
        file["images"], file["labels"] = numbered(len(grid), 64), labels
    return root / "3dshapes.h5"


def write_cars3d(root, names="cab"):
    from scipy.io import savemat

    folder = root / "data/cars"
    folder.mkdir(parents=True)
    cars, azimuths, elevations = official.CARS3D.sizes
    images = numbered(len(official.CARS3D), 128).reshape(cars, azimuths, elevations, 128, 128, 3)
    for name in names:  # written in another order than sorted
        im = images["abc".index(name)].transpose(2, 3, 4, 0, 1)
        savemat(folder / f"{name}.mat", {"im": im}, do_compression=True)
    return folder


def write_cars3d_archive(root):
    folder = write_cars3d(root)
    (root / "data/sprites").mkdir()
    (root / "data/sprites/s.mat").write_bytes(b"of another set")
    with tarfile.open(root / "nips.tar.gz", "w:gz") as tar:
        for name in ("c", "a", "b"):
            tar.add(folder / f"{name}.mat", f"data/cars/{name}.mat")
        tar.add(root / "data/sprites/s.mat", "data/sprites/s.mat")
    return root / "nips.tar.gz"


def write_norb(path, array):
    magic = 507333717 if array.dtype == np.uint8 else 507333716
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    path.write_bytes(
        struct.pack(f"<{2 + len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()
    )


def write_smallnorb(root):
    grid, rng = official.SMALLNORB, np.random.default_rng(0)
    factors = grid.factors(np.arange(len(grid)))
    images = numbered(len(grid), 96, 1)[..., 0]
    is_training = np.isin(factors[:, 1], (4, 6, 7, 8, 9))
    for prefix, rows in zip(official.NORB_FILES, (is_training, ~is_training), strict=True):
        rows = rng.permutation(np.flatnonzero(rows))
        info = factors[rows, 1:] * [1, 1, 2, 1]  # azimuth is 0, 2, 4, ...
        write_norb(root / f"{prefix}-dat.mat", np.stack([images[rows], 255 - images[rows]], 1))
        write_norb(root / f"{prefix}-cat.mat", factors[rows, 0].astype("<i4"))
        write_norb(root / f"{prefix}-info.mat", info.astype("<i4"))
    return root


def write_mpi3d(root, n=24, save=np.savez):
    save(root / "mpi3d.npz", images=numbered(n, 64))
    return root / "mpi3d.npz"


def write_celeba(root):
    (root / "img_align_celeba").mkdir()
    lines = ["5", "Bald Smiling "]
    for i, image in enumerate(numbered(5, 218)[:, :, :178]):
        Image.fromarray(image).save(root / f"img_align_celeba/{i + 1:06d}.png")
        lines.append(f"{i + 1:06d}.png {1 if i == 3 else -1:2d} {1 if i % 2 else -1:2d}")
    (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return root


def write_folder(root):
    (root / "0").mkdir()
    for i, image in enumerate(numbered(9, 50)):
        Image.fromarray(image).save(root / f"{'0/' * (i < 4)}{i}.png")
    (root / "Thumbs.db").write_bytes(b"no picture")
    rows = [f"{'0/' * (i < 4)}{i}.png,{i / 4},{'xyz'[i % 3]}" for i in range(9)]
    (root / "labels.csv").write_text("\n".join(["file,angle,kind", *rows[::-1]]))
    return root


WRITERS = {
    "shapes3d": write_shapes3d,
    "cars3d": write_cars3d,
    "smallnorb": write_smallnorb,
    "mpi3d": write_mpi3d,
    "celeba": write_celeba,
    "folder": write_folder,
}
NAMES = {name for name in DATASETS if DATASETS[name].__module__ in ("data.official", "data.folder")}


@pytest.fixture
def load(tmp_path):
    def build(name, path, **settings):
        return load_dataset(name, cache_dir=tmp_path / "cache", path=str(path), **settings)

    return build


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_every_set_of_files_is_written_here():
    assert set(WRITERS) == NAMES


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", WRITERS)
def test_every_image_is_in_its_row_at_any_size(name, size, source, load, tmp_path):
    data = load(name, WRITERS[name](source), size=size)
    channels = 1 if name == "smallnorb" else 3
    assert data.image_shape == (channels, size, size)
    assert torch.equal(data.images[0], torch.full_like(data.images[0], 255))
    expected = torch.arange(1, len(data)).to(torch.uint8).view(-1, 1, 1, 1)
    assert torch.equal(data.images[1:], expected.expand_as(data.images[1:]))
    assert data.images.data_ptr() == data.to("cpu").images.data_ptr()  # no copy of the map
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_the_sizes_are_those_of_the_publications(monkeypatch):
    monkeypatch.undo()
    grids = (official.SHAPES3D, official.CARS3D, official.SMALLNORB)
    assert [len(grid) for grid in grids] == [480_000, 17_568, 48_600]
    assert [prod(sizes) for sizes in official.MPI3D_SIZES] == [460_800, 1_036_800]


def test_the_archive_of_cars_reads_as_its_folder(source, load):
    archive = load("cars3d", write_cars3d_archive(source))
    assert torch.equal(archive.images, load("cars3d", source / "data/cars").images)


def test_mpi3d_has_the_sizes_of_its_length_and_may_be_compressed(source, load):
    assert load("mpi3d", write_mpi3d(source, 8)).grid.sizes == (1, 1, 1, 1, 1, 2, 4)
    data = load("mpi3d", write_mpi3d(source, save=np.savez_compressed))
    assert (data.grid.sizes, data.images[23, 0, 0, 0]) == ((2, 2, 1, 1, 1, 2, 3), 23)


def test_labels_of_pictures_are_a_table(source, load):
    write_folder(source)
    assert load("folder", source).grid is None
    data = load("folder", source, labels=str(source / "labels.csv"), channels=1)
    assert (data.grid.names, data.image_shape) == (("angle", "kind"), (1, 64, 64))
    assert data.grid.values.tolist() == [[i / 4, i % 3] for i in range(9)]
    faces = load("celeba", write_celeba(source))
    assert faces.grid.names == ("Bald", "Smiling")
    assert faces.grid.values.tolist() == [[0, 0], [0, 1], [0, 0], [1, 1], [0, 0]]


def test_pictures_of_any_mode_and_shape_show_their_middle_square(source, load):
    picture = Image.new("RGB", (300, 100), (0, 0, 255))
    picture.paste((200, 100, 50), (100, 0, 200, 100))
    for mode in ("RGB", "RGBA", "P", "L", "1"):
        picture.convert(mode).save(source / f"{mode}.png")
    data = load("folder", source, size=32)
    colours = data.images[:, :, 16, 16]  # of the files 1, L, P, RGB, RGBA
    assert colours[3:].tolist() == [[200, 100, 50]] * 2
    assert colours[1].tolist() == [124] * 3
    inner = data.images[3, :, 1:-1, 1:-1]  # without the pixels that the antialiasing mixes
    assert torch.equal(inner, inner[:, :1, :1].expand_as(inner))


def never(*_):
    raise AssertionError("the files are read again")


def test_files_are_read_once_and_again_if_they_changed(source, load, tmp_path, monkeypatch):
    first = load("mpi3d", write_mpi3d(source, 8))
    with monkeypatch.context() as patch:
        patch.setattr(official, "read_mpi3d", never)
        again = load("mpi3d", source / "mpi3d.npz")
        assert again.fingerprint == first.fingerprint
        with pytest.raises(AssertionError, match="read again"):
            official.read_mpi3d()
    changed = load("mpi3d", write_mpi3d(source, 24))
    assert len(changed) == 24
    assert changed.fingerprint != first.fingerprint
    load("mpi3d", source / "mpi3d.npz", size=32)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # one a size, none of the old file


def test_no_more_than_a_part_is_in_memory(source):
    for parts in (
        official.read_shapes3d(write_shapes3d(source)),
        official.read_smallnorb(write_smallnorb(source)),
        official.read_mpi3d(write_mpi3d(source)),
    ):
        assert max(len(images) for _, images in parts) == 7


def test_the_sampled_fingerprint_sees_content_length_and_factors():
    images = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1)
    prints = [
        ImageData("x", x, grid, is_sampled=True).fingerprint
        for x in (images, images + 1, images[:9])
        for grid in (None, FactorGrid(("a",), (len(x),)))
    ]
    assert len(set(prints)) == 6
    large = ImageData("x", torch.zeros(1, 1, 1, 1).expand(10**8, 1, 1, 1), None, is_sampled=True)
    assert "of (100000000, 1, 1, 1)" in large.fingerprint


@pytest.mark.parametrize("name", WRITERS)
def test_an_absent_file_is_one_sentence_with_an_address(name, tmp_path, load):
    with pytest.raises(ValueError, match=r"dataset.path: there is nothing .* at ") as error:
        load(name, tmp_path / "none")
    assert "\n" not in str(error.value)
    assert "http" in str(error.value) or name == "folder"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(a, b):
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


NORB_DAT, NORB_CAT, NORB_INFO = (
    f"{official.NORB_FILES[0]}-{part}.mat" for part in ("dat", "cat", "info")
)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("shapes3d", lambda p: truncate(p), "truncated file"),
        ("shapes3d", lambda p: p.write_bytes(b"foreign"), "file signature not found"),
        ("cars3d", lambda p: truncate(p / "b.mat"), ""),
        ("cars3d", lambda p: (p / "b.mat").unlink(), "there are 2 files of cars, not 3"),
        ("smallnorb", lambda p: truncate(p / NORB_DAT), "dat.mat is truncated"),
        ("smallnorb", lambda p: swap(p / NORB_DAT, p / NORB_CAT), ""),
        ("smallnorb", lambda p: swap(p / NORB_CAT, p / NORB_INFO), ""),
        ("smallnorb", lambda p: (p / NORB_CAT).write_bytes(b"foreign!"), "allowed: 507333717"),
        ("smallnorb", lambda p: (p / NORB_CAT).unlink(), "No such file"),
        ("mpi3d", lambda p: truncate(p), "not a zip file"),
        ("mpi3d", lambda p: np.savez(p, other=np.arange(3)), "no item named 'images.npy'"),
        ("mpi3d", lambda p: np.savez(p, images=numbered(9, 64)), "it has 9 images; allowed: 8, 24"),
        ("mpi3d", lambda p: np.savez(p, images=numbered(8, 64, 1)), "images are uint8"),
        ("celeba", lambda p: truncate(p / "img_align_celeba/000003.png"), "000003.png: "),
        ("folder", lambda p: (p / "5.png").write_bytes(b"foreign"), "5.png: cannot identify"),
    ],
)
def test_damaged_swapped_and_foreign_files_are_one_sentence(
    name, damage, reason, source, load, tmp_path
):
    path = WRITERS[name](source)
    damage(path)
    with pytest.raises(ValueError, match=r"dataset.path: .* is damaged or another file") as error:
        load(name, path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").glob("*.npy")) == []


def test_labels_of_shapes3d_in_another_order_are_refused(source, load):
    h5py = pytest.importorskip("h5py", reason="h5py is optional; it reads 3D Shapes")
    with h5py.File(write_shapes3d(source), "r+") as file:
        file["labels"][:] = file["labels"][:][::-1]
    with pytest.raises(ValueError, match=r"labels .* are not the grid"):
        load("shapes3d", source / "3dshapes.h5")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda text: text.replace("7.png", "77.png"), "has no row for the picture 7.png"),
        (lambda text: text + "\n10.png,1,x", "has a row for 10.png, but there is no such picture"),
        (lambda text: text + "\n7.png,1,x", "needs one row a picture"),
        (lambda text: text.replace("z", ""), "needs one row a picture"),
        (lambda text: "", "is no table of labels"),
        (lambda text: text + "\na,b,c,d,e", "is no table of labels"),
    ],
)
def test_labels_that_do_not_fit_are_one_sentence(edit, reason, source, load):
    path = write_folder(source) / "labels.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=f"dataset.labels: {path} {reason}"):
        load("folder", source, labels=str(path))


# Training and scores


def scored(arguments, run, *options):
    """Train, then score the run; returns metrics.json."""
    assert train.main([*arguments, "model.latent_dim=3"]) == 0
    assert evaluate.main(["--checkpoint", str(run), "--samples", "auto", *options]) == 0
    return json.loads((run / "metrics.json").read_text())["scores"]


@pytest.fixture
def cached_here(tmp_path, monkeypatch):
    monkeypatch.setattr("data.CACHE_DIR", tmp_path / "cache")
    return tmp_path / "runs/small/seed0"


def test_a_nuisance_factor_is_neither_scored_nor_a_name(source, command, cached_here):
    data = f"dataset={{name: smallnorb, path: {write_smallnorb(source)}}}"
    arguments = command("config/twoD.yaml", data, "train.score_every=3", steps=3)
    mig = scored(arguments, cached_here, "--metrics", "mig,factor_vae")["mig"]
    assert set(mig["per_factor"]) == {"category", "elevation", "azimuth", "lighting"}
    assert "instance is left out" in mig["note"]


def test_pictures_with_labels_are_trained_and_scored_as_their_codes(
    source, command, cached_here, tmp_path
):
    path = write_folder(source)
    data = f"dataset={{name: folder, path: {path}, labels: {path / 'labels.csv'}, size: 32}}"
    options = ("--metrics", "mig", "--bins", "angle=3")
    mig = scored(command("config/twoD.yaml", data, steps=3), cached_here, *options)["mig"]
    codes = ["--write-codes", str(tmp_path / "codes.npz")]
    assert evaluate.main(["--checkpoint", str(cached_here), *codes]) == 0
    options = ("--samples", "auto", *options, "--out", str(tmp_path / "o"))
    assert evaluate.main(["--codes", str(tmp_path / "codes.npz"), *options]) == 0
    again = json.loads((tmp_path / "o/codes/metrics.json").read_text())["scores"]["mig"]
    assert (again["score"], set(again["per_factor"])) == (mig["score"], {"angle", "kind"})


def test_an_absent_file_ends_training_with_code_2(command, cached_here, tmp_path, capsys):
    data = f"dataset={{name: shapes3d, path: {tmp_path / '3dshapes.h5'}}}"
    assert train.main(command("config/twoD.yaml", data)) == 2
    message = capsys.readouterr().err
    assert (
        "download https://storage.googleapis.com/3d-shapes/3dshapes.h5 and put it there" in message
    )
    assert message.count("\n") == 1
