"""Pictures: what is in which cell, what is written beside it, and that files are whole."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from figures import canvas, charts, latents, motion
from figures.study import training_curves

GREY_GROUND, GREY_SPRITE = 153, 217  # .6 and .85 of white: a latent that carries nothing


class Shifter(nn.Module):
    """A white 8x8 square whose column follows z0 and row z1, in whole pixels; the rest is dead."""

    def __init__(self, latent_dim=4, channels=1, size=64, gan=False, dtype=torch.float32):
        super().__init__()
        self.latent_dim, self.channels, self.size, self.dtype = latent_dim, channels, size, dtype
        self.span, self.trained_span = ((-2, 2), (-1, 1)) if gan else ((-3, 3), None)
        self.information_name = "MI bound" if gan else "KL"

    def decode(self, z):
        pixel, middle = torch.arange(self.size), self.size // 2 - 4
        first = middle + (3 * z[:, [1 % self.latent_dim, 0], None]).round()  # of the rows, columns
        rows, columns = ((first <= pixel) & (pixel < first + 8)).unbind(1)
        x = (rows[:, :, None] & columns[:, None]).to(self.dtype)
        return x[:, None].repeat(1, self.channels, 1, 1)

    def encode(self, x):
        rows, columns = (x[:, 0].amax(d).argmax(1) - (self.size // 2 - 4) for d in (2, 1))
        z = torch.zeros(len(x), max(2, self.latent_dim))
        z[:, 0], z[:, 1] = columns / 3, rows / 3
        return z[:, : self.latent_dim]

    def sample(self, n, generator):
        return torch.randn(n, self.latent_dim, generator=generator).clamp(-2, 2)


INFORMATION = [1.5, 2.5, 0.01, 0.04]  # order: z1, z0, then the grey z3, z2


@pytest.fixture
def model():
    return Shifter()


@pytest.fixture
def references(model):
    codes = torch.tensor([[0.0, 0, 0, 0], [2, -1, 0, 0], [-1.0, 1, 2, 0.4]])
    first, second = model.decode(codes[:2])
    return {"first": first, "second": second, "noise": codes[2]}


def cell(page, row, column, rows, columns, size=64):
    """Pixels of a cell of the table in the page's lower right corner."""
    grid = canvas.GAP + canvas.BORDER
    x = page.width - grid - (columns - column) * (size + 1) + 1
    y = page.height - grid - (rows - row) * (size + 1) + 1
    return np.asarray(page.convert("L").crop((x, y, x + size, y + size)))


def inner(pixels):
    """Without the two outermost pixels, on which a blue frame may lie."""
    return pixels[2:-2, 2:-2].astype(int)


def pixels_of(image):
    return (image[0].float().numpy() * 255).astype(np.uint8)


@pytest.fixture
def tables(monkeypatch):
    """Records the arguments of each table that a page is made of."""
    calls = []

    def spy(title, rows, groups, **settings):
        calls.append({"title": title, "rows": rows, "groups": groups} | settings)
        return canvas.table(title, rows, groups, **settings)

    monkeypatch.setattr(latents, "table", spy)
    monkeypatch.setattr(motion, "table", spy)
    return calls


def test_traversal_cells_hold_what_the_decoder_makes(model, references, tmp_path):
    path = latents.traversal(model, tmp_path / "t.png", references, INFORMATION, title="t")
    page = Image.open(path)
    noise = references["noise"]
    for row, latent in enumerate([1, 0]):  # the last block is the noise; most informative first
        for column in range(10):
            z = noise.clone()
            z[latent] = -3 + 6 * column / 9
            expected = pixels_of(model.decode(z[None])[0])
            found = cell(page, row, column, rows=4, columns=10)
            np.testing.assert_array_equal(inner(found), inner(expected))
    decoded = pixels_of(model.decode(noise[None])[0])
    for row in (2, 3):
        found = cell(page, row, 5, rows=4, columns=10)
        expected = np.where(decoded, GREY_SPRITE, GREY_GROUND)
        np.testing.assert_allclose(inner(found), inner(expected), atol=5)  # 64 shades


def test_traversal_names_sorts_and_marks(model, references, tables, tmp_path):
    names = ["posX 90%", "posY 80%", "shape 70%", ""]  # z2 is dead: what it follows is noise
    latents.traversal(
        model, tmp_path / "t.png", references, INFORMATION, title="t", factor_names=names
    )
    assert [call["title"] for call in tables] == ["first", "second", "noise"]
    assert tables[0]["rows"] == [
        ("z1  KL 2.5\nposY 80%", canvas.INK),
        ("z0  KL 1.5\nposX 90%", canvas.INK),
        ("z3  KL 0.0", canvas.GREY),
        ("z2  KL 0.0", canvas.GREY),
    ]
    sides, values = tables[1]["groups"]
    assert [text for text, _ in sides[1]] == ["image", "decoded"]
    header = " ".join(text for text, _ in values[1])
    assert header == "-3.0 -2.3 -1.7 -1.0 -0.3 0.3 1.0 1.7 2.3 3.0"
    assert {colour for _, colour in values[1]} == {canvas.INK}
    assert tables[1]["marks"] == [3, 8, canvas.NO_MARK, canvas.NO_MARK]  # z1 = -1, z0 = 2
    torch.testing.assert_close(sides[0][0, 0], references["second"])
    assert tables[2]["groups"][0][0][0, 0].min() == 1  # a code has no image: white


def test_marked_cell_is_framed_in_blue(model, references, tmp_path):
    path = latents.traversal(model, tmp_path / "t.png", references, INFORMATION, title="t")
    page = Image.open(path).convert("RGB")
    x = page.width - canvas.GAP - canvas.BORDER - 4 * 65 + 32  # z1 = 1 lies in column 6 of 10
    y = page.height - canvas.GAP - canvas.BORDER - 4 * 65
    assert page.getpixel((x, y)) == canvas.BLUE
    assert page.getpixel((x - 65, y)) == page.getpixel((x + 65, y)) != canvas.BLUE


def test_code_grid_keeps_everything_but_the_code_and_marks_the_outside(tables, tmp_path):
    model = Shifter(3, gan=True)
    draws = {"draw 1": torch.tensor([0.5, -1, 0.2]), "draw 2": torch.tensor([-1.0, 1, 0.9])}
    latents.traversal(
        model, tmp_path / "c.png", draws, [0.2, -0.3, 0.9], title="c", by_latent=True, values=5
    )
    assert [call["title"] for call in tables] == [
        "z2  MI bound 0.9",
        "z0  MI bound 0.2",
        "z1  MI bound -0.3",
    ]
    ((cells, columns),) = tables[0]["groups"]
    assert cells.shape == (2, 5, 1, 64, 64)
    for row in cells:  # z2 moves nothing here, so a row shows one and the same image
        assert all(torch.equal(image, row[0]) for image in row)
    assert not torch.equal(cells[0, 0], cells[1, 0])
    colours = [colour for _, colour in columns]
    assert colours == [canvas.ORANGE, canvas.INK, canvas.INK, canvas.INK, canvas.ORANGE]
    expected = model.decode(torch.tensor([[2.0, -1, 0.2]]))[0]
    torch.testing.assert_close(tables[1]["groups"][0][0][0, -1], expected)


@pytest.mark.parametrize(
    ("information", "factors", "key"),
    [([1.0] * 3, None, "information: 3"), ([1.0] * 4, ["a"], "factor_names: 1")],
)
def test_wrong_lengths_are_refused_by_name(model, references, tmp_path, information, factors, key):
    with pytest.raises(ValueError, match=f"{key} .* 4 latents"):
        latents.traversal(
            model, tmp_path / "t.png", references, information, title="t", factor_names=factors
        )
    assert not list(tmp_path.iterdir())


def test_random_grid_shows_the_draws_of_its_seed(model, references, tables, tmp_path):
    path = latents.random_grid(model, tmp_path / "r.png", seed=5, title="r", rows=3, columns=7)
    page = Image.open(path)
    z = model.sample(21, torch.Generator().manual_seed(5))
    for index, image in enumerate(model.decode(z)):
        x, y = canvas.GAP + 1 + 65 * (index % 7), page.height - canvas.GAP - 65 * (3 - index // 7)
        found = np.asarray(page.convert("L").crop((x, y, x + 64, y + 64)))
        np.testing.assert_array_equal(found, pixels_of(image))
    assert not tables
    latents.random_grid(model, path, references, INFORMATION, seed=5, title="r")
    assert [call["title"] for call in tables] == list(references)
    assert Image.open(path).height > page.height + 3 * 4 * 65


def test_reconstructions_stand_under_their_images(model, tmp_path):
    x = model.decode(torch.randn(13, 4).clamp(-2, 2))
    x[:, :, 0, 0] = 1  # the decoder will not draw this corner
    page = Image.open(latents.reconstructions(model, x, tmp_path / "r.png", title="r"))
    left = page.width - canvas.GAP - 1 - 10 * 65 + 1  # the second line has 3 of 10 pairs
    y = page.height - canvas.GAP - 2 * 65
    for index in range(3):
        box = (left + 65 * index, y, left + 65 * index + 64, y + 64)
        np.testing.assert_array_equal(page.convert("L").crop(box), pixels_of(x[10 + index]))
        under = np.asarray(page.convert("L").crop((box[0], y + 65, box[2], y + 129)))
        expected = pixels_of(model.decode(model.encode(x[10 + index : 11 + index]))[0])
        np.testing.assert_array_equal(under, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("latent_dim", "channels", "size"), [(1, 1, 64), (32, 3, 28), (5, 1, 96)])
def test_all_pages_at_all_sizes(latent_dim, channels, size, dtype, tmp_path):
    model = Shifter(latent_dim, channels, size, dtype=dtype)
    z = model.sample(2, torch.Generator().manual_seed(0))
    references = {"image": model.decode(z)[0], "code": z[1]}
    information = torch.linspace(2, 0, latent_dim)
    drawn = {64: 64, 28: 84, 96: 96}[size]  # whole factors only: 28 becomes 3 x 28
    path = latents.traversal(model, tmp_path / "t.png", references, information, title="t")
    width, height = Image.open(path).size
    assert width > 12 * drawn
    assert height > 2 * latent_dim * drawn
    latents.random_grid(model, tmp_path / "r.png", references, information, seed=0, title="r")
    latents.reconstructions(model, model.decode(z), tmp_path / "x.png", title="x")
    gif = Image.open(motion.traversal_gif(model, tmp_path / "t.gif", references, information))
    assert gif.width > latent_dim * drawn
    pixels = motion.frame(model, z, columns=2)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (drawn + 2, 2 * drawn + 3) + (3,) * (channels == 3)


def frames_of(path):
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            yield gif.convert("RGB"), gif.info["duration"]


def test_traversal_gif_goes_there_and_back(model, references, tables, tmp_path):
    path = motion.traversal_gif(model, tmp_path / "t.gif", references, INFORMATION)
    pages, pauses = zip(*frames_of(path), strict=True)
    assert len(pages) == 32
    assert Image.open(path).info["loop"] == 0
    assert (pauses[0], pauses[1], pauses[16]) == (500, 100, 500)
    assert pages[0].getpixel((0, 0)) == (255, 255, 255)
    for step in range(1, 16):
        assert pages[step].tobytes() == pages[32 - step].tobytes() != pages[0].tobytes()
    assert [text for text, _ in tables[0]["groups"][1][1]] == [
        f"{name}\nKL {nats}" for name, nats in [("z1", 2.5), ("z0", 1.5), ("z3", 0.0), ("z2", 0.0)]
    ]
    z = references["noise"].clone()
    for index, value in [(0, -3.0), (16, 3.0)]:
        cells, _ = tables[index]["groups"][1]  # (R, D, C, H, W), most informative first
        z[1] = value
        torch.testing.assert_close(cells[2, 0], model.decode(z[None])[0])
    shown = pixels_of(model.decode(z[None])[0])  # noise, z1 at its upper end
    columns = np.asarray(pages[16].convert("L"))
    found = [
        x
        for x in range(columns.shape[1] - 64)
        if np.array_equal(columns[46 + 131 : 46 + 131 + 64, x : x + 64], shown)
    ]
    assert len(found) == 1


def test_traversal_gif_without_images_has_no_column_for_them(model, references, tables, tmp_path):
    codes = {"noise": references["noise"]}
    motion.traversal_gif(model, tmp_path / "t.gif", codes, INFORMATION)
    assert [text for text, _ in tables[0]["groups"][0][1]] == ["decoded"]


def test_training_gif_shows_each_step_in_order_and_rests_on_the_last(model, tmp_path):
    z = model.sample(6, torch.Generator().manual_seed(0))
    frames = [(step, motion.frame(model, z * step / 400, columns=3)) for step in (400, 0, 100)]
    path = motion.training_gif(frames, tmp_path / "t.gif", title="t")
    pages, pauses = zip(*frames_of(path), strict=True)
    assert pauses == (250, 250, 2500)
    for page, (step, pixels) in zip(pages, sorted(frames, key=lambda pair: pair[0]), strict=True):
        at = (canvas.GAP, motion.TOP, canvas.GAP + pixels.shape[1], motion.TOP + pixels.shape[0])
        grey = np.asarray(page.convert("L")).astype(int)
        found = grey[at[1] : at[3], at[0] : at[2]]
        assert np.abs(found - pixels).max() <= 8  # 32 shades
        bar = grey[33, canvas.GAP : page.width - canvas.GAP]
        assert (bar < 60).mean() == pytest.approx(step / 400, abs=0.01)
    with pytest.raises(ValueError, match="frames: none given"):
        motion.training_gif([], tmp_path / "t.gif", title="t")


def write_log(path, rows):
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def vae_rows(n=120):
    nats = {"kl": 2.0, "kl_0": 0.001, "kl_1": 1.2, "kl_2": 0.8}
    return [
        {"step": 10 * i, "images": 640 * i, "recon": 500 / i, "elbo": -500 / i, "note": "x"} | nats
        for i in range(1, n + 1)
    ]


@pytest.fixture
def figure(monkeypatch):
    """Returns the axes of the last chart, by title."""
    drawn = []
    save = charts.save_chart
    keep = lambda fig, path: drawn.append(fig) or save(fig, path)  # noqa: E731
    monkeypatch.setattr(charts, "save_chart", keep)
    return lambda: {ax.get_title(loc="left"): ax for ax in drawn[-1].axes}


def test_panels_follow_from_the_columns(figure, tmp_path):
    log = write_log(tmp_path / "log.csv", vae_rows())
    charts.loss_curves(log, tmp_path / "c.png", title="t")
    panels = figure()
    assert list(panels) == [
        "Reconstruction error",
        "KL divergence",
        "KL of each latent",
        "Evidence lower bound",
    ]
    recon = panels["Reconstruction error"]
    assert recon.get_yscale() == "log"
    raw, smooth = (line.get_ydata() for line in recon.lines)
    np.testing.assert_allclose(raw, 500 / np.arange(1, 121))
    assert smooth[60] == pytest.approx(raw[58:63].mean())
    assert smooth[-1] == pytest.approx(raw[-3:].mean())
    each = panels["KL of each latent"]
    assert each.get_yscale() == "linear"
    assert [text.get_text() for text in each.texts] == ["z1 1.20", "z2 0.80", "1 below 0.05"]
    assert each.lines[-1].get_color() == charts.GREY


def test_curves_of_a_gan_with_gaps_and_a_torn_row(figure, tmp_path):
    terms = {"d_loss": 1.0, "g_loss": 2.0, "q_loss": 0.5, "mi": 1.5, "d_real": 0.7, "d_fake": 0.6}
    rows = [{"step": i, "cr": "" if i < 30 else 0.25} | terms for i in range(60)]
    log = write_log(tmp_path / "log.csv", rows)
    log.write_text(log.read_text() + "60,")
    charts.loss_curves(log, tmp_path / "c.png", title="t")
    panels = figure()
    assert list(panels) == ["Losses", "Information", "Accuracy of the discriminator"]
    assert {text.get_text() for text in panels["Losses"].texts} == {
        "d_loss 1.00",
        "g_loss 2.00",
        "q_loss 0.50",
        "cr 0.25",
    }


@pytest.mark.parametrize(
    ("terms", "panels"),
    [
        ({"recon": 3.0, "loss": 4.0}, {"Reconstruction error": ["recon"]}),
        ({"loss": 4.0, "energy": 2.0}, {"Other terms": ["energy"]}),
        ({"loss": 4.0}, {"Other terms": ["loss"]}),
    ],
)
def test_terms_that_no_panel_claims_are_drawn_too(figure, tmp_path, terms, panels):
    rows = [{"step": i, "images": 8 * i} | terms for i in range(1, 4)]
    log = write_log(tmp_path / "log.csv", rows)
    charts.loss_curves(log, tmp_path / "c.png", title="t")
    found = {title: [t.get_text().split()[0] for t in ax.texts] for title, ax in figure().items()}
    assert found == panels
    frames = {"own": [pd.read_csv(log)], "vae": [pd.DataFrame({"step": [1], "kl": [2.0]})]}
    training_curves(frames, tmp_path / "s.png", title="t")
    assert (tmp_path / "s.png").exists()


def test_a_log_of_one_row_is_drawn_and_an_empty_one_refused(tmp_path):
    charts.loss_curves(write_log(tmp_path / "1.csv", vae_rows(1)), tmp_path / "1.png", title="t")
    for text in ("step,recon\n", "step,images\n1,2\n"):
        (tmp_path / "0.csv").write_text(text)
        with pytest.raises(ValueError, match=r"0\.csv: no numbers to draw"):
            charts.loss_curves(tmp_path / "0.csv", tmp_path / "0.png", title="t")
    assert not (tmp_path / "0.png").exists()


@pytest.mark.parametrize("heights", [[0.5], [0.5, 0.5, 0.5], [1, 0.99, 0, 0.02], [1.0] * 13])
def test_labels_keep_apart_and_in_order(heights):
    spread = charts._spread(heights)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(spread[order]) >= 0.075 - 1e-9).all()
    assert 0 <= spread.min() <= spread.max() <= 1


MATRIX = np.array(
    [[0.1, 0.0, 2.0], [0.01, 0.0, 0.02], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0], [0.0, 0.3, 0.1]]
)
NAMES = {"rows": list("abcde"), "columns": ["x", "y", "s"]}


def test_matrix_rows_are_sorted_by_factor_then_strength(figure, tmp_path):
    charts.matrix(MATRIX, tmp_path / "m.png", **NAMES, title="m", kind="nats")
    ax = figure()["m"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list("ceadb")
    cells = np.array([float(text.get_text()) for text in ax.texts]).reshape(5, 3)
    np.testing.assert_allclose(cells, MATRIX[[2, 4, 0, 3, 1]])


def test_a_dollar_in_a_name_is_one(tmp_path):
    names = {"rows": list("abcde"), "columns": [r"$\size$", "x", "y"]}
    path = charts.matrix(MATRIX, tmp_path / "m.png", **names, title=r"rep$\a$", kind="nats")
    assert path.stat().st_size > 0


def test_best_factors_are_named_with_their_share():
    names = charts.best_factors(MATRIX, ["x", "y", "s"])
    assert names == ["s 95%", "", "x 90%", "s 100%", "y 75%"]
    assert charts.best_factors(np.zeros((2, 3)), ["x", "y", "s"]) == ["", ""]


def test_bars_show_ours_and_the_paper_and_what_is_missing(figure, tmp_path):
    nan = float("nan")
    charts.bars(
        tmp_path / "b.png",
        labels=["VAE", "InfoGAN"],
        values=[70.25, nan],
        errors=[1.5, nan],
        reference=[61.58, 73.5],
        reference_errors=[nan, 0.9],
        title="b",
        unit="%",
    )
    ax = figure()["b"]
    assert [bar.get_width() for bar in ax.patches] == [70.25, 0]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first label is on top
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["ours", "70.2 ± 1.5", "-", "paper", "61.6", "73.5 ± 0.9"]


def draw_everything(folder, model, references):
    x = torch.stack([references["first"], references["second"]])
    log = write_log(folder / "log.csv", vae_rows())
    frames = [(step, motion.frame(model, x.new_full((3, 4), step / 9))) for step in range(3)]
    yield latents.traversal(model, folder / "a.png", references, INFORMATION, title="t")
    yield latents.random_grid(model, folder / "b.png", references, INFORMATION, seed=0, title="t")
    yield latents.reconstructions(model, x, folder / "c.png", title="t")
    yield motion.traversal_gif(model, folder / "d.gif", references, INFORMATION)
    yield motion.training_gif(frames, folder / "e.gif", title="t")
    yield charts.loss_curves(log, folder / "f.png", title="t")
    yield charts.matrix(MATRIX, folder / "g.png", **NAMES, title="t", kind="k")


def test_the_same_input_gives_the_same_bytes_and_leaves_nothing_else(model, references, tmp_path):
    runs = [tmp_path / "1", tmp_path / "2"]
    for run in runs:
        run.mkdir()
    first, second = (list(draw_everything(run, model, references)) for run in runs)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert {path.name for path in runs[0].iterdir()} == {path.name for path in first} | {"log.csv"}
    for path in first:
        page = Image.open(path)
        assert page.mode == "P"
        assert not {"Software", "Creation Time", "date:create"} & set(page.info)
        assert page.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        assert path.stat().st_size < 200_000


def test_a_failed_write_keeps_the_old_picture(model, references, monkeypatch, tmp_path):
    path = tmp_path / "t.png"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        latents.traversal(model, path, references, INFORMATION, title="t")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_colour_pages_keep_their_colours(tmp_path):
    ramp = torch.linspace(0, 1, 64)
    image = torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), 1 - ramp.expand(64, 64)]
    )
    page = canvas.tile(image[None], 1)
    found = np.asarray(Image.open(canvas.save_png(page, tmp_path / "c.png")).convert("RGB"))
    expected = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(found[1:-1, 1:-1], expected)
