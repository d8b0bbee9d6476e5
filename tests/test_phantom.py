"""The phantom: its table, what its images show, and the folder it writes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fetal_utils.images import CSV_COLUMNS, CSV_NAME, IMAGE_DIR
from fetal_utils.phantom import ANATOMY, CALIPERS, MIN_PATIENTS, TEXT, dataset, draw_image, draw_metadata
from fetal_utils.phantom.__main__ import main
from fetal_utils.phantom.dataset import MASK_DIR, RECORD_NAME, phantom_dir, write_phantom
from fetal_utils.phantom.fetus import draw_fetus
from fetal_utils.phantom.machines import MACHINES
from fetal_utils.phantom.metadata import PLANE_NUMBERS
from fetal_utils.phantom.planes import BRAIN_PLANES, NOT_A_BRAIN, PLANES, TARGETS, draw_slice
from fetal_utils.phantom.solids import Structure as S
from fetal_utils.phantom.solids import box, ellipsoid, paint, tube, turn
from fetal_utils.splits import read_metadata, write_metadata

HEIGHT = 64  # px, the smallest allowed
SETTINGS = {"n_patients": MIN_PATIENTS, "seed": 3, "image_height": HEIGHT, "progress": False}


def row_of(plane: str, brain_plane: str = NOT_A_BRAIN, *, machine: str = "Voluson E6", patient: int = 1) -> dict:
    """A row of the table, as `read_metadata` gives it."""
    name = f"Patient{patient:05d}_Plane{PLANE_NUMBERS[plane]}_1_of_1"
    return dict(zip(CSV_COLUMNS.values(), (name, patient, plane, brain_plane, "Op. 1", machine, "train"), strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The smallest phantom, drawn by two processes."""
    return write_phantom(tmp_path_factory.mktemp("phantom") / "small", **SETTINGS, n_workers=2)


# the table


@pytest.mark.parametrize("seed", range(5))
def test_even_the_smallest_table_holds_every_class_in_both_splits(seed):
    table = draw_metadata(MIN_PATIENTS, rng=np.random.default_rng(seed))
    for split in ("train", "test"):
        rows = table[table["split"] == split]
        assert set(rows["plane"]) == set(PLANES)
        assert set(rows["brain_plane"]) >= set(BRAIN_PLANES[:3])
    assert table.groupby("patient")["split"].nunique().max() == 1


def test_names_number_the_images_of_each_plane_of_each_patient():
    table = draw_metadata(60, rng=np.random.default_rng(0))
    parts = table["image_name"].str.extract(r"^Patient(\d{5})_Plane(\d)_(\d+)_of_(\d+)$").astype(int)
    assert (parts[0] == table["patient"]).all()
    assert (parts[1] == table["plane"].map(PLANE_NUMBERS)).all()
    groups = parts.groupby([0, 1])
    assert (groups[2].transform(lambda index: range(1, len(index) + 1)) == parts[2]).all()
    assert (groups[3].transform("size") == parts[3]).all()
    assert set(table["patient"]) == set(range(1, 61))


def test_the_drawn_proportions_are_those_of_the_real_table(real_data):
    real, drawn = read_metadata(real_data), draw_metadata(1792, rng=np.random.default_rng(0))
    for columns in (["split"], ["machine", "split"], ["operator"], ["brain_plane"], ["plane", "machine"]):
        both = pd.concat([table.value_counts(columns, normalize=True) for table in (real, drawn)], axis=1).fillna(0)
        assert both.diff(axis=1).iloc[:, 1].abs().max() < 0.06, columns
    n_images = [table.groupby("patient").size() for table in (real, drawn)]
    assert n_images[1].mean() == pytest.approx(n_images[0].mean(), rel=0.1)
    assert (n_images[1] == 1).mean() == pytest.approx((n_images[0] == 1).mean(), abs=0.05)
    s10 = drawn[drawn["machine"] == "Voluson S10"]
    assert len(s10) > 500
    assert (s10["split"] == "test").mean() > 0.95


# solids and anatomy


def slice_areas(solids, plane, half_mm: float = 60.0, step_mm: float = 0.5) -> np.ndarray:
    """Area (mm2) of every structure in a slice."""
    axis = np.arange(-half_mm, half_mm, step_mm, dtype=np.float32)
    x, z = np.meshgrid(axis, axis)
    labels = np.zeros(x.shape, np.uint8)
    paint(labels, solids, plane, x, z)
    return np.bincount(labels.ravel(), minlength=len(S)) * step_mm**2


def test_slices_of_solids_have_the_areas_of_their_conics():
    at_6_mm = np.array([[1, 0, 0], [0, 0, 6], [0, 1, 0], [0, 0, 1]], float)  # the plane y = 6
    ball, hole = ellipsoid(S.LIVER, (0, 0, 0), (10, 10, 10)), ellipsoid(S.LIVER, (0, 6, 0), (4, 4, 4))
    bar = box(S.SKULL, (0, 0, 0), (20, 20, 3), turn("y", 30))
    oblique = tube(S.FEMUR, (0, -20, 0), (0, 32, 0), 5).placed(np.zeros(3), turn("x", 60) * 2)
    for solid, area in (
        (ball, np.pi * 8**2),
        (ball.without(hole), np.pi * (8**2 - 4**2)),
        (ball.within(hole), np.pi * 4**2),
        (bar, 40 * 6),
        (oblique, np.pi * 10 * 10 / np.cos(np.deg2rad(60))),
    ):
        assert slice_areas([solid], at_6_mm, step_mm=0.2)[solid.structure] == pytest.approx(area, rel=0.02)
    on_top = slice_areas([ball, ellipsoid(S.STOMACH, (0, 6, 0), (4, 4, 4))], at_6_mm, step_mm=0.2)
    assert on_top[[S.LIVER, S.STOMACH]] == pytest.approx([np.pi * (8**2 - 4**2), np.pi * 4**2], rel=0.02)


@pytest.fixture(scope="module")
def shown() -> dict[str, np.ndarray]:
    """Of each name of TARGETS, area of every structure in the slices that are aimed at in five fetuses."""
    fetuses = [draw_fetus(np.random.default_rng(seed)) for seed in range(5)]
    return {
        name: np.array(
            [slice_areas(f.solids, draw_slice(f, t, rng=np.random.default_rng(1))) for f in fetuses for t in ts]
        )
        for name, ts in TARGETS.items()
    }


def test_each_brain_plane_is_told_by_its_own_structures(shown):
    thalamic, cerebellar, ventricular = (shown[name] for name in BRAIN_PLANES[:3])
    assert (cerebellar[:, S.CEREBELLUM] > 5 * np.maximum(thalamic, ventricular)[:, S.CEREBELLUM]).all()
    assert (ventricular[:, S.CHOROID_PLEXUS] > 3 * np.maximum(thalamic, cerebellar)[:, S.CHOROID_PLEXUS]).all()
    # the cerebellar plane is the thalamic one tilted, so it too passes through the thalami and the cavum
    assert (thalamic[:, S.THALAMUS] > 5 * ventricular[:, S.THALAMUS]).all()
    assert (thalamic[:, S.CAVUM] > 0).all()
    assert (cerebellar[:, S.CAVUM] > 0).all()


@pytest.mark.parametrize("name", TARGETS)
def test_every_plane_shows_some_of_what_defines_it(name, shown):
    defining = np.array([[structure in target.defining for structure in S] for target in TARGETS[name]])
    assert ((shown[name] * np.tile(defining, (5, 1))).sum(axis=1) > 2).all()


# single images


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("plane", PLANES)
def test_every_plane_on_every_machine_is_an_image_with_its_mask(plane, machine):
    row = row_of(plane, BRAIN_PLANES[0] if plane == "Fetal brain" else NOT_A_BRAIN, machine=machine)
    image, mask = draw_image(row, seed=0, image_height=HEIGHT)
    assert image.dtype == mask.dtype == np.uint8
    assert image.shape == mask.shape == (HEIGHT, round(HEIGHT * MACHINES[machine].aspect))
    assert {ANATOMY, TEXT} <= set(np.unique(mask)) <= {0, ANATOMY, TEXT, CALIPERS}
    assert image[mask == TEXT].mean() > 80
    assert image.min() < 20 < 150 < image.max()


def test_bone_casts_a_shadow():
    above, below = [], []
    for patient in range(1, 7):
        image, mask = draw_image(row_of("Fetal femur", patient=patient), seed=0, image_height=128)
        marked = mask == ANATOMY
        top, bottom = marked.argmax(axis=0), len(mask) - 1 - marked[::-1].argmax(axis=0)
        for column in np.flatnonzero(marked.any(axis=0)):
            above.append(image[max(top[column] - 10, 0) : top[column] - 3, column].mean())
            below.append(image[bottom[column] + 5 : bottom[column] + 12, column].mean())
    assert np.nanmedian(below) < 0.5 * np.nanmedian(above)


def test_an_image_depends_on_the_seed_the_patient_and_its_name():
    row = row_of("Fetal abdomen")
    first = draw_image(row, seed=0, image_height=HEIGHT)[0]
    np.testing.assert_array_equal(first, draw_image(row, seed=0, image_height=HEIGHT)[0])
    for other in (row | {"image_name": "Patient00001_Plane2_2_of_2"}, row | {"patient": 2}):
        assert (first != draw_image(other, seed=0, image_height=HEIGHT)[0]).mean() > 0.3
    assert (first != draw_image(row, seed=1, image_height=HEIGHT)[0]).mean() > 0.3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of("Fetal abdomen") | {"plane": "Fetal knee"}, "Fetal knee"),
        (row_of("Fetal abdomen") | {"machine": "Sonar"}, "Sonar"),
        (row_of("Fetal brain", "Other") | {"brain_plane": "Trans-fer"}, "Trans-fer"),
        (row_of("Fetal abdomen", "Trans-thalamic"), "does not go with"),
        ({"image_name": "x"}, "missing"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_refused_by_name(row, message):
    with pytest.raises(ValueError, match=message):
        draw_image(row, seed=0)


# the folder


def test_the_folder_has_the_layout_of_the_real_one(small):
    table = read_metadata(small)
    pd.testing.assert_frame_equal(table, draw_metadata(MIN_PATIENTS, rng=np.random.default_rng(3)), check_dtype=False)
    for directory in (IMAGE_DIR, MASK_DIR):
        assert {path.stem for path in (small / directory).iterdir()} == set(table["image_name"])
    record = json.loads((small / RECORD_NAME).read_text())
    assert record["n_images"] == len(table)
    assert record["seed"] == 3
    assert "not clinical data" in record["notice"]


def test_a_row_drawn_alone_has_the_pixels_of_the_full_run(small):
    for row in read_metadata(small).iloc[::11].to_dict("records"):
        for directory, pixels in zip((IMAGE_DIR, MASK_DIR), draw_image(row, seed=3, image_height=HEIGHT), strict=True):
            np.testing.assert_array_equal(
                pixels, np.asarray(Image.open(small / directory / f"{row['image_name']}.png"))
            )


def test_the_number_of_workers_changes_no_byte(small, tmp_path):
    alone = write_phantom(tmp_path / "alone", **SETTINGS, n_workers=1)
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert all((small / path).read_bytes() == (alone / path).read_bytes() for path in files)


def test_a_folder_with_anything_else_is_refused_and_left_alone(small, tmp_path):
    with pytest.raises(FileExistsError, match="other settings"):
        write_phantom(small, **SETTINGS | {"seed": 4})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no phantom"):
        write_phantom(tmp_path, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "compose", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_phantom(tmp_path / "new", **SETTINGS, n_workers=1)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_a_killed_run_leaves_no_folder_and_the_next_one_begins_anew(tmp_path):
    out, beside = tmp_path / "out", tmp_path / ".out.partial"
    process = get_context("fork").Process(target=write_phantom, args=(out,), kwargs={"n_workers": 2, "progress": False})
    process.start()
    deadline = time.monotonic() + 60
    while not any(beside.rglob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    assert beside.exists()
    assert not out.exists()
    write_phantom(out, **SETTINGS, n_workers=1)  # of other settings
    assert len(list((out / IMAGE_DIR).iterdir())) == len(read_metadata(out))
    assert not beside.exists()


def test_phantom_dir_draws_once_for_all_who_ask(tmp_path, monkeypatch):
    drawn, compose = [], dataset.compose
    monkeypatch.setattr(
        dataset, "compose", lambda row, **about: drawn.append(row["image_name"]) or compose(row, **about)
    )
    monkeypatch.setattr(dataset, "draw_metadata", lambda *_, **__: pd.DataFrame([row_of("Other")]))
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(phantom_dir, tmp_path, n_patients=20, seed=1, image_height=HEIGHT) for _ in range(3)]
        folders = {future.result() for future in asked}
    assert len(folders) == len(drawn) == 1


# the command


def test_the_command_draws_a_real_table_and_says_so_when_there_is_nothing_to_do(real_data, tmp_path, capsys):
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    write_metadata(read_metadata(real_data).head(8), given)
    command = ["--out", str(out), "--image-height", str(HEIGHT), "--metadata"]
    assert main([*command, str(given / CSV_NAME)]) == 0
    assert "written" in capsys.readouterr().out
    pd.testing.assert_frame_equal(read_metadata(out), read_metadata(given))
    assert len(list((out / IMAGE_DIR).iterdir())) == 8
    assert main([*command, str(given)]) == 0  # its folder will do as well
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patients", "3"], "at least 12"),
        (["--image-height", "7"], "image_height=7"),
        (["--seed", "-2"], "seed=-2"),
        (["--workers", "0"], "n_workers=0"),
        (["--metadata", "absent.csv"], "absent.csv"),
        (["--metadata", "short"], "missing"),
        (["--metadata", "wrong"], "Fetal knee"),
        (["--out", "taken/file"], "taken"),
    ],
)
def test_the_command_refuses_bad_input_with_status_2_and_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("short", "wrong"):
        Path(name).mkdir()
    Path("taken").write_text("a file, no folder")
    (Path("short") / CSV_NAME).write_text("Image_name;Plane\na;Other\n")
    write_metadata(pd.DataFrame([row_of("Other") | {"plane": "Fetal knee"}]), "wrong")
    assert main(["--out", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()
