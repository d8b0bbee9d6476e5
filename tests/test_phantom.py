"""The phantom: solids, beams, image formation, the table, and the folder it writes."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fetal_utils.data import CSV_COLUMNS, CSV_NAME, IMAGE_DIR
from fetal_utils.phantom import (
    ANATOMY,
    CALIPERS,
    MASK_DIR,
    MIN_PATIENTS,
    RECORD_NAME,
    TEXT,
    dataset,
    draw_image,
    draw_metadata,
    overlay,
    phantom_dir,
    write_phantom,
)
from fetal_utils.phantom.__main__ import main
from fetal_utils.phantom.fetus import Fetus, draw_fetus, mean_biometry
from fetal_utils.phantom.geometry import Probe, Screen, cover
from fetal_utils.phantom.imaging import Scanner, Tissue, b_mode, compress
from fetal_utils.phantom.machines import MACHINES
from fetal_utils.phantom.metadata import BRAIN_PLANES, PLANE_NUMBERS
from fetal_utils.phantom.painting import paint
from fetal_utils.phantom.planes import BRAIN_TARGETS, NOT_A_BRAIN, OTHER_TARGETS, PLANES, TARGETS, draw_view
from fetal_utils.phantom.shapes import Repeated, Within, Without, ellipsoid, tube
from fetal_utils.phantom.structures import Structure as S

REAL = Path(__file__).parents[2] / "shared" / "data"
real_csv = pytest.mark.skipif(not (REAL / CSV_NAME).exists(), reason="the real CSV is not at ../shared/data")
HEIGHT = 64  # px, the smallest allowed


def points_at(*positions) -> np.ndarray:
    """Positions in mm as one row of points, (3, 1, n)."""
    return np.array(positions, np.float32).T[:, None, :]


def row_of(plane: str, brain_plane: str = NOT_A_BRAIN, *, machine: str = "Voluson E6", patient: int = 1) -> dict:
    name = f"Patient{patient:05d}_Plane{PLANE_NUMBERS[plane]}_1_of_1"
    return dict(zip(CSV_COLUMNS, (name, patient, plane, brain_plane, "Op. 1", machine, 1), strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The smallest phantom, drawn by two processes."""
    folder = tmp_path_factory.mktemp("phantom") / "small"
    return write_phantom(folder, n_patients=MIN_PATIENTS, seed=3, image_height=HEIGHT, n_workers=2, progress=False)


@pytest.fixture(scope="module")
def small_table(small) -> pd.DataFrame:
    return pd.read_csv(small / CSV_NAME, sep=";")


# solids


def test_an_ellipsoid_reaches_its_half_lengths_and_no_further():
    solid = ellipsoid(1, [10, 0, 0], [1, 2, 3])
    inside = solid.contains(points_at([10.99, 0, 0], [11.01, 0, 0], [10, 1.99, 0], [10, 2.01, 0], [10, 0, -2.99]))
    assert inside.ravel().tolist() == [True, False, True, False, True]


def test_a_tube_is_round_at_its_ends():
    inside = tube(1, [0, 0, 0], [10, 0, 0], 2).contains(
        points_at([5, 1.9, 0], [11.9, 0, 0], [12.1, 0, 0], [11.9, 1, 0])
    )
    assert inside.ravel().tolist() == [True, True, False, False]


def test_repeated_solids_lie_one_pitch_apart_and_end():
    beads = Repeated(ellipsoid(1, [0, 0, 0], [1, 1, 1]), pitch=5, n_each_side=2)
    inside = beads.contains(points_at([0, 0, 5], [0, 0, 2.5], [0, 0, -10], [0, 0, 15]))
    assert inside.ravel().tolist() == [True, False, True, False]


def test_without_and_within_are_set_difference_and_intersection():
    ball, hole = ellipsoid(1, [0, 0, 0], [3, 3, 3]), ellipsoid(1, [3, 0, 0], [2, 2, 2])
    where = points_at([0, 0, 0], [2, 0, 0], [4, 0, 0])
    assert Without(ball, hole).contains(where).ravel().tolist() == [True, False, False]
    assert Within(ball, hole).contains(where).ravel().tolist() == [False, True, False]


def test_painting_by_blocks_misses_no_point_of_a_fetus():
    fetus = draw_fetus(np.random.default_rng(4))
    axis = np.linspace(-150, 150, 61, dtype=np.float32)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    for y in (-9.0, 0.0, 12.0):
        points = np.stack([x, np.full_like(x, y), z])
        for part in fetus.parts.values():
            local = points - part.origin[:, None, None].astype(np.float32)
            local = (part.rotation.T.astype(np.float32) @ local.reshape(3, -1)).reshape(points.shape)
            by_blocks, one_by_one = np.zeros(x.shape, np.uint8), np.zeros(x.shape, np.uint8)
            paint(by_blocks, local, part.solids)
            for solid in part.solids:
                one_by_one[solid.contains(local)] = solid.label
            np.testing.assert_array_equal(by_blocks, one_by_one)


# the fetus


def test_biometry_at_twenty_weeks_follows_the_published_equations():
    sizes = mean_biometry(20.0)
    assert sizes.biparietal_mm == pytest.approx(5.60878 + 63.3476 - 20.51032, abs=1e-3)
    assert sizes.femur_mm == pytest.approx(-39.9616 + 86.4596 - 15.20624, abs=1e-3)
    assert sizes.abdominal_circumference_mm == pytest.approx(-81.3243 + 233.544 - 4.49492, abs=1e-3)


@pytest.mark.parametrize("weeks", [12.0, 41.0])
def test_biometry_refuses_ages_outside_the_curves(weeks):
    with pytest.raises(ValueError, match="gestational age"):
        mean_biometry(weeks)


@cache
def fetus_of(seed: int) -> Fetus:
    return draw_fetus(np.random.default_rng(seed))


def structure_areas(target, n_fetuses: int = 5) -> pd.DataFrame:
    """Area (mm2) of every structure in a target's slice, one row per fetus."""
    axis = np.arange(-50, 50, 0.7, dtype=np.float32)
    x, z = np.meshgrid(axis, axis)
    areas = []
    for seed in range(n_fetuses):
        fetus = fetus_of(seed)
        labels = np.zeros(x.shape, np.uint8)
        fetus.paint(labels, draw_view(fetus, target, rng=np.random.default_rng([seed, 1])).to_body(x, z))
        areas.append(np.bincount(labels.ravel(), minlength=len(S)) * 0.7**2)
    return pd.DataFrame(areas, columns=list(S))


def test_each_brain_plane_is_told_by_its_own_structures():
    areas = {name: structure_areas(target) for name, target in BRAIN_TARGETS.items()}
    thalamic, cerebellar, ventricular = areas.values()
    assert list(areas) == ["Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"]
    assert (cerebellar[S.CEREBELLUM] > 5 * np.maximum(thalamic, ventricular)[S.CEREBELLUM]).all()
    assert (ventricular[S.CHOROID_PLEXUS] > 3 * np.maximum(thalamic, cerebellar)[S.CHOROID_PLEXUS]).all()
    # the cerebellar plane is the thalamic one tilted, so it too passes through the thalami
    assert (thalamic[S.THALAMUS] > 5 * ventricular[S.THALAMUS]).all()
    assert (thalamic[S.THALAMUS] > 20).all()


def test_the_cavum_lies_in_the_thalamic_and_the_cerebellar_plane():
    for plane in ("Trans-thalamic", "Trans-cerebellum"):
        assert (structure_areas(BRAIN_TARGETS[plane])[S.CAVUM] > 0).all(), plane


@pytest.mark.parametrize("target", [*TARGETS.values(), *OTHER_TARGETS.values()], ids=[*TARGETS, *OTHER_TARGETS])
def test_every_plane_shows_some_of_what_defines_it(target):
    shown = structure_areas(target)[list(target.defining)].sum(axis=1)
    assert (shown > 2).all(), shown.tolist()


# beams and screen


@pytest.mark.parametrize("probe", [Probe(40, half_angle_deg=35), Probe(0, half_width_mm=20)])
def test_beam_coordinates_come_back_as_slice_coordinates(probe):
    x, z = np.array([-12.0, 0.0, 15.0]), np.array([50.0, 60.0, 70.0])
    np.testing.assert_allclose(probe.to_slice(*probe.to_beam(x, z)), (x, z), atol=1e-9)


def test_scan_conversion_puts_each_depth_where_it_belongs_and_leaves_the_rest_black():
    probe, screen = Probe(40, half_angle_deg=30), Screen(-60, 35, 0.5, 200, 240)
    grid = cover(probe, screen, beam_width=0.01, max_depth_mm=80)
    depth = np.broadcast_to(grid.ranges_mm[:, None], (grid.n_ranges, grid.n_beams)).copy()
    shown = grid.to_screen(depth)
    x, z = screen.to_slice()
    inside = (np.hypot(x, z) > 40.5) & (np.hypot(x, z) < 119.5) & (np.abs(np.arctan2(x, z)) < np.deg2rad(29.9))
    np.testing.assert_allclose(shown[inside], np.hypot(x, z)[inside] - 40, atol=0.02)
    outside = (np.hypot(x, z) > 120) | (np.abs(np.arctan2(x, z)) > np.deg2rad(30))
    assert not shown[outside].any()
    assert not grid.to_screen_nearest(np.ones((grid.n_ranges, grid.n_beams), np.uint8))[outside].any()


def test_a_screen_beside_the_field_is_refused():
    with pytest.raises(ValueError, match="shows nothing"):
        cover(Probe(40, half_angle_deg=30), Screen(500, 0, 0.5, 64, 64), beam_width=0.01, max_depth_mm=80)


# image formation

SCANNER = Scanner(
    axial_mm=0.4,
    lateral=0.02,
    focus_mm=40,
    dynamic_range_db=100,
    gain_db=0,
    tgc_db_cm=0,
    noise_db=-140,
    smoothing=0,
    gamma=1,
    haze=0,
    contact_db=0,
)


def homogeneous(shape=(300, 160), backscatter_db=-30.0) -> Tissue:
    zeros = np.zeros(shape, np.float32)
    return Tissue(zeros + backscatter_db, zeros, zeros + 1.5, zeros)


def gray_of(tissue: Tissue, scanner: Scanner = SCANNER) -> np.ndarray:
    ranges_mm = 0.2 * np.arange(len(tissue.impedance), dtype=np.float32)
    rng = np.random.default_rng(0)
    return b_mode(tissue, ranges_mm=ranges_mm, beam_step=0.01, beam_spacing_mm=0.5, scanner=scanner, rng=rng)


def test_log_compression_is_linear_in_decibels_and_clipped():
    scanner = replace(SCANNER, dynamic_range_db=60, gamma=2)
    gray = compress(np.array([10.0, 1.0, 10 ** (-30 / 20), 10 ** (-60 / 20), 1e-5]), scanner)
    np.testing.assert_allclose(gray, [1, 1, 0.25, 0, 0], atol=1e-3)


def test_speckle_of_homogeneous_tissue_has_the_contrast_of_rayleigh_statistics():
    amplitude = 10 ** ((gray_of(homogeneous()) - 1) * 100 / 20)
    assert amplitude.mean() / amplitude.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.05)


@pytest.mark.parametrize("change", [{"lateral": 0.05}, {"axial_mm": 0.8}, {"focus_mm": 10}])
def test_the_point_spread_leaves_the_mean_power_of_speckle_unchanged(change):
    power = [
        (10 ** ((gray_of(homogeneous(), scanner) - 1) * 100 / 10)).mean()
        for scanner in (SCANNER, replace(SCANNER, **change))
    ]
    assert 10 * np.log10(power[1] / power[0]) == pytest.approx(0, abs=0.5)


def test_a_shadow_is_as_deep_as_the_loss_summed_along_the_beam():
    tissue = homogeneous()
    tissue.attenuation_db_cm[50:100, 80:] = 20.0  # 50 samples of 0.2 mm: 1 cm, so 20 dB
    level_db = (gray_of(tissue) - 1) * 100
    assert level_db[150:, :60].mean() - level_db[150:, 100:].mean() == pytest.approx(20, abs=0.7)
    assert level_db[:40, :60].mean() == pytest.approx(level_db[:40, 100:].mean(), abs=1.5)


def test_an_interface_across_the_beam_is_brighter_than_one_along_it():
    across, along = homogeneous(backscatter_db=-90), homogeneous(backscatter_db=-90)
    across.impedance[150:] = 2.5
    along.impedance[:, 80:] = 2.5
    assert gray_of(across).max() > gray_of(along).max() + 0.2


# single images


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("plane", PLANES)
def test_every_plane_on_every_machine_is_an_image_with_its_mask(plane, machine):
    brain_plane = BRAIN_PLANES[0] if plane == "Fetal brain" else NOT_A_BRAIN
    image, mask = draw_image(row_of(plane, brain_plane, machine=machine), seed=0, image_height=HEIGHT)
    assert image.dtype == mask.dtype == np.uint8
    assert image.shape == mask.shape
    assert image.shape[0] == HEIGHT
    assert 1.3 <= image.shape[1] / HEIGHT <= 1.6
    assert set(np.unique(mask)) <= {0, ANATOMY, TEXT, CALIPERS}
    assert (mask == ANATOMY).any()
    assert (mask == TEXT).any()
    assert image.max() > 150
    assert image.min() < 20


def test_an_image_depends_on_the_seed_the_patient_and_its_name():
    row = row_of("Fetal abdomen")
    first = draw_image(row, seed=0, image_height=HEIGHT)[0]
    np.testing.assert_array_equal(first, draw_image(row, seed=0, image_height=HEIGHT)[0])
    for other in (row | {"Image_name": "Patient00001_Plane2_2_of_2"}, row | {"Patient_num": 2}):
        assert (first != draw_image(other, seed=0, image_height=HEIGHT)[0]).mean() > 0.3
    assert (first != draw_image(row, seed=1, image_height=HEIGHT)[0]).mean() > 0.3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of("Fetal abdomen") | {"Plane": "Fetal knee"}, "Fetal knee"),
        (row_of("Fetal abdomen") | {"US_Machine": "Sonar"}, "Sonar"),
        (row_of("Fetal brain", "Other") | {"Brain_plane": "Trans-fer"}, "Trans-fer"),
        (row_of("Fetal abdomen", "Trans-thalamic"), "does not go with"),
        ({"Image_name": "x"}, "missing"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_refused_by_name(row, message):
    with pytest.raises(ValueError, match=message):
        draw_image(row, seed=0)


@pytest.mark.parametrize(("seed", "image_height"), [(-1, 256), (0, 8), (0, 5000)])
def test_settings_out_of_range_are_refused(seed, image_height):
    with pytest.raises(ValueError, match="give"):
        draw_image(row_of("Other"), seed=seed, image_height=image_height)


def test_the_telling_preset_is_burnt_in_as_often_as_documented():
    rng = np.random.default_rng(0)
    drawn = [overlay._preset("Fetal thorax", 22.0, rng) for _ in range(2000)]
    share = np.mean([preset == "Cardiac" for preset in drawn])
    telling = overlay.LEAK["Fetal thorax"][1]
    expected = telling + (1 - telling) * overlay.STRAY_SHARE / len(overlay.STRAY_PRESETS)
    assert share == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 2000))


# the table


@pytest.mark.parametrize("seed", range(5))
def test_even_the_smallest_table_holds_every_class_in_both_splits(seed):
    table = draw_metadata(MIN_PATIENTS, rng=np.random.default_rng(seed))
    for train in (0, 1):
        rows = table[table["Train "] == train]
        assert set(rows["Plane"]) == set(PLANES)
        assert set(rows["Brain_plane"]) >= set(BRAIN_PLANES[:3])
    assert table.groupby("Patient_num")["Train "].nunique().max() == 1


def test_names_number_the_images_of_each_plane_of_each_patient():
    table = draw_metadata(60, rng=np.random.default_rng(0))
    parts = table["Image_name"].str.extract(r"^Patient(\d{5})_Plane(\d)_(\d+)_of_(\d+)$").astype(int)
    assert (parts[0] == table["Patient_num"]).all()
    assert (parts[1] == table["Plane"].map(PLANE_NUMBERS)).all()
    groups = parts.groupby([0, 1])
    assert (groups[2].transform(lambda index: range(1, len(index) + 1)) == parts[2]).all()
    assert (groups[3].transform("size") == parts[3]).all()
    assert table["Image_name"].is_unique
    assert table["Patient_num"].is_monotonic_increasing
    assert set(table["Patient_num"]) == set(range(1, 61))


def test_a_large_table_has_the_proportions_of_the_real_one():
    table = draw_metadata(1792, rng=np.random.default_rng(0))
    per_patient = table.groupby("Patient_num").size()
    assert per_patient.mean() == pytest.approx(6.92, rel=0.1)
    assert (per_patient == 1).mean() == pytest.approx(603 / 1792, abs=0.05)
    assert per_patient.max() > 40
    assert table["Train "].mean() == pytest.approx(7129 / 12400, abs=0.06)
    s10 = table[table["US_Machine"] == "Voluson S10"]
    assert len(s10) > 500
    assert (s10["Train "] == 0).mean() > 0.95
    real = pd.Series(dict(zip(PLANES, (711, 3092, 1040, 1718, 1626, 4213), strict=True))) / 12400
    np.testing.assert_allclose(table["Plane"].value_counts(normalize=True)[real.index], real, atol=0.03)


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="at least 12"):
        draw_metadata(11, rng=np.random.default_rng(0))


@real_csv
def test_the_drawn_proportions_are_close_to_the_real_csv():
    real = pd.read_csv(REAL / CSV_NAME, sep=";")
    drawn = draw_metadata(1792, rng=np.random.default_rng(1))
    for columns in (["US_Machine", "Train "], ["Operator"], ["Brain_plane"], ["Plane", "US_Machine"]):
        both = pd.concat([table.value_counts(columns, normalize=True) for table in (real, drawn)], axis=1).fillna(0)
        assert both.diff(axis=1).iloc[:, 1].abs().max() < 0.05, columns


# the folder


def test_the_folder_has_the_layout_and_the_quirks_of_the_real_one(small, small_table):
    lines = (small / CSV_NAME).read_bytes().decode().split("\n")
    assert lines[0] == "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "
    assert lines[-1] == ""
    assert all(re.fullmatch(r"[^;]+(;[^;]+){5};[01] ", line) for line in lines[1:-1])
    for directory in (IMAGE_DIR, MASK_DIR):
        assert {path.stem for path in (small / directory).iterdir()} == set(small_table["Image_name"])
    record = json.loads((small / RECORD_NAME).read_text())
    assert record["n_images"] == len(small_table)
    assert record["seed"] == 3
    assert "not clinical data" in record["notice"]


def test_a_row_drawn_alone_has_the_pixels_of_the_full_run(small, small_table):
    for row in small_table.iloc[:: len(small_table) // 6].to_dict("records"):
        image, mask = draw_image(row, seed=3, image_height=HEIGHT)
        name = f"{row['Image_name']}.png"
        np.testing.assert_array_equal(image, np.asarray(Image.open(small / IMAGE_DIR / name)))
        np.testing.assert_array_equal(mask, np.asarray(Image.open(small / MASK_DIR / name)))


def test_the_number_of_workers_changes_no_byte(small, tmp_path):
    alone = tmp_path / "alone"
    write_phantom(alone, n_patients=MIN_PATIENTS, seed=3, image_height=HEIGHT, n_workers=1, progress=False)
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert all((small / path).read_bytes() == (alone / path).read_bytes() for path in files)


def test_asking_again_for_the_same_phantom_does_nothing(small):
    before = (small / RECORD_NAME).stat().st_mtime_ns
    write_phantom(small, n_patients=MIN_PATIENTS, seed=3, image_height=HEIGHT, progress=False)
    assert (small / RECORD_NAME).stat().st_mtime_ns == before


def test_a_folder_with_anything_else_is_refused_and_left_alone(small, tmp_path):
    with pytest.raises(FileExistsError, match="other settings"):
        write_phantom(small, n_patients=MIN_PATIENTS, seed=4, image_height=HEIGHT)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no phantom"):
        write_phantom(tmp_path, n_patients=MIN_PATIENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(dataset, "draw_row", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_phantom(tmp_path / "new", n_patients=MIN_PATIENTS, n_workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_phantom_dir_draws_once_for_all_who_ask(tmp_path, monkeypatch):
    table = pd.DataFrame([row_of("Other")])
    calls = []

    def write_little(folder, **settings):
        calls.append(settings)
        return write_phantom(folder, metadata=table, image_height=HEIGHT, progress=False)

    monkeypatch.setattr(dataset, "write_phantom", write_little)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(phantom_dir, tmp_path, n_patients=20, seed=1, image_height=HEIGHT) for _ in range(3)]
        folders = {future.result() for future in asked}
    assert len(folders) == len(calls) == 1
    assert folders.pop().name == f"phantom-20p-seed1-{HEIGHT}px-v{dataset.FORMAT_VERSION}"


@real_csv
def test_a_real_table_gives_one_image_for_every_row(tmp_path):
    lines = (REAL / CSV_NAME).read_text().split("\n")[:9]
    given = tmp_path / "given.csv"
    given.write_text("\n".join(lines) + "\n")
    out = write_phantom(tmp_path / "out", metadata=given, image_height=HEIGHT, progress=False)
    assert (out / CSV_NAME).read_bytes() == given.read_bytes()
    assert len(list((out / IMAGE_DIR).iterdir())) == 8


# the command


def test_the_command_writes_and_says_so_when_there_is_nothing_to_do(tmp_path, capsys):
    pd.DataFrame([row_of("Fetal femur")]).to_csv(tmp_path / "one.csv", sep=";", index=False)
    command = ["--out", str(tmp_path / "out"), "--metadata", str(tmp_path / "one.csv"), "--image-height", str(HEIGHT)]
    assert main(command) == 0
    assert "written" in capsys.readouterr().out
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patients", "3"], "at least 12"),
        (["--image-height", "7"], "image_height=7"),
        (["--seed", "-2"], "seed=-2"),
        (["--metadata", "absent.csv"], "no file absent.csv"),
        (["--metadata", "short.csv"], "are missing"),
        (["--metadata", "wrong.csv"], "Fetal knee"),
    ],
)
def test_the_command_refuses_bad_input_with_status_2_and_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("short.csv").write_text("Image_name;Plane\na;Other\n")
    pd.DataFrame([row_of("Other") | {"Plane": "Fetal knee"}]).to_csv("wrong.csv", sep=";", index=False)
    assert main(["--out", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()
