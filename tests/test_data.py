"""The table of a data folder, its tasks, and the data set that runs are given."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from data_folders import HEADER, csv_line, plane_lines, write_folder, write_table
from PIL import Image

from fetal_utils import data
from fetal_utils.data import (
    CSV_NAME,
    TASKS,
    TASKS_NAME,
    Dataset,
    Task,
    keep_metadata,
    open_dataset,
    read_metadata,
    read_tasks,
)
from fetal_utils.images import TEXT_CORNER
from fetal_utils.splits import write_metadata

LINES = plane_lines()  # 8 rows, lines 2 to 9 of the file


@pytest.fixture(scope="module")
def real_table(real_data):
    return read_metadata(real_data)


@pytest.fixture
def folder(tmp_path):
    """Two planes of 12 training and 4 test patients, 32 x 32 px."""
    return write_folder(tmp_path / "mine", plane_lines(n_train=12, n_test=4), shape=(32, 32))


@pytest.fixture
def dataset(folder, tmp_path):
    return Dataset(folder, tmp_path / "cache")


# --- the published table -----------------------------------------------------------------------------


def test_the_real_table_has_the_published_rows_patients_and_columns(real_table):
    assert len(real_table) == 12_400
    assert real_table["patient"].nunique() == 1_792
    assert list(real_table.columns) == ["image_name", "patient", "plane", "brain_plane", "operator", "machine", "split"]
    assert real_table["image_name"].is_unique and real_table["image_name"][0] == "Patient00001_Plane1_1_of_15"


@pytest.mark.parametrize(
    ("column", "counts"),
    [
        ("plane", {"Other": 4213, "Fetal brain": 3092, "Fetal thorax": 1718, "Maternal cervix": 1626,
                   "Fetal femur": 1040, "Fetal abdomen": 711}),
        ("brain_plane", {"Not A Brain": 9308, "Trans-thalamic": 1638, "Trans-cerebellum": 714,
                         "Trans-ventricular": 597, "Other": 143}),
        ("operator", {"Other": 3613, "Op. 3": 3560, "Op. 1": 2792, "Op. 2": 2435}),
        ("machine", {"Voluson E6": 5862, "Aloka": 5114, "Voluson S10": 1082, "Other": 342}),
        ("split", {"train": 7129, "test": 5271}),
    ],
)  # fmt: skip
def test_the_real_table_has_the_published_values(real_table, column, counts):
    assert real_table[column].value_counts().to_dict() == counts


def test_voluson_s10_is_nearly_all_in_the_official_test_set(real_table):
    splits = real_table[real_table["machine"] == "Voluson S10"]["split"]
    assert splits.value_counts().to_dict() == {"test": 1071, "train": 11}


def test_the_real_native_images_lack_two_planes_and_have_the_described_counts(real_data, tmp_path):
    dataset = Dataset(real_data / "fetal_planes_native", tmp_path)
    assert dataset.task("planes").classes == ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")
    assert dataset.task("brain_planes") == TASKS["brain_planes"]
    assert len(dataset.rows("train")) + len(dataset.rows("development")) == 890
    assert len(dataset.rows("test")) == 404
    assert len(dataset.rows("test", dataset.task("brain_planes"))) == 77 + 32 + 33
    assert dataset.summary("planes").loc[("class", "Maternal cervix"), "total"] == 0
    assert list(tmp_path.iterdir()) == []  # nothing was decoded for this


# --- reading -----------------------------------------------------------------------------------------


def test_a_table_is_read_in_the_order_of_its_lines_and_text_stays_text(tmp_path):
    lines = [csv_line("0007", 7, "1", brain_plane="True", operator="01"), csv_line("a", 2, machine="NA", train=0)]
    assert read_metadata(write_table(tmp_path, lines)).to_dict("list") == {
        "image_name": ["0007", "a"],
        "patient": [7, 2],
        "plane": ["1", "Fetal femur"],
        "brain_plane": ["True", "Not A Brain"],
        "operator": ["01", "Op. 1"],
        "machine": ["Aloka", "NA"],
        "split": ["train", "test"],
    }


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (HEADER.strip(), [line.strip() for line in LINES]),
        ("\ufeff" + HEADER, LINES),
        (HEADER + "\r", [line + "\r" for line in LINES]),
        (HEADER, [line.replace(";", ".png;", 1) for line in LINES]),
        (HEADER, [LINES[0], "", *LINES[1:], "", ";;;;;;"]),
        (HEADER + ";;", [line + ";;" for line in LINES]),
    ],
    ids=["no spaces", "byte order mark", "CRLF", "with .png", "empty lines", "surplus ;"],
)
def test_harmless_variants_of_the_file_read_alike(tmp_path, header, lines):
    expected = read_metadata(write_table(tmp_path / "as_published", LINES))
    pd.testing.assert_frame_equal(read_metadata(write_table(tmp_path / "variant", lines, header=header)), expected)


def test_a_written_table_is_the_published_file_byte_by_byte(real_data, real_table, tmp_path):
    write_metadata(real_table, tmp_path)
    assert (tmp_path / CSV_NAME).read_bytes() == (real_data / CSV_NAME).read_bytes()


def test_a_table_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"DB_data\.csv is missing; data_dir is the folder of FETAL_PLANES_DB"):
        read_metadata(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read: No columns.*separated by ';'"),
        (HEADER.encode() + b"\n\n\n", "0 rows"),
        ("Müller".encode("cp1252"), "can't be read.*saved as 'CSV UTF-8'"),
        ("\n".join([HEADER, *LINES]).replace(";", ",").encode(), "missing .'Image_name', .*expected Image_name;P"),
    ],
    ids=["empty", "header only", "cp1252", "commas"],
)
def test_a_file_that_is_no_such_table_is_named_with_the_remedy(tmp_path, content, message):
    (tmp_path / CSV_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=rf"FETAL_PLANES_DB_data\.csv.* {message}"):
        read_metadata(tmp_path)


def test_missing_columns_are_named_and_further_ones_do_no_harm(tmp_path):
    with pytest.raises(ValueError, match=r"missing \['Plane'\]; expected Image_name;Patient_num;Plane"):
        read_metadata(write_table(tmp_path, LINES, header=HEADER.replace("Plane;", "Plan;", 1)))
    with pytest.raises(ValueError, match=r"twice or missing \['Plane'\]"):
        read_metadata(write_table(tmp_path, [f"{line};x" for line in LINES], header=HEADER + ";Plane"))
    expected = read_metadata(write_table(tmp_path, LINES))
    further = write_table(tmp_path, [f"{line};x" for line in LINES], header=HEADER + ";Age")
    pd.testing.assert_frame_equal(read_metadata(further), expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (csv_line("new", "x"), "line 10, patient 'x': expected a whole number"),
        (csv_line("new", -3), "line 10, patient '-3': expected a whole number"),
        (csv_line("new", "9" * 20), "line 10, patient '9+': expected a whole number"),
        (csv_line("new", 9, train=2), r"line 10, split '2': expected 1 \(train\) or 0 \(test\)"),
        (csv_line("new", 9, ""), "line 10, plane '': expected some text"),
        ("new;9;Fetal femur", "line 10, brain_plane ''.*line 10, machine ''.*line 10, operator ''"),
        (csv_line("../secret", 9), r"line 10, image_name '\.\./secret': expected a plain file name"),
        (csv_line("p1_femur.png", 1), "line 2, image_name 'p1_femur': expected each name once; line 10"),
        (csv_line("new", "001", train=0), "line 2, patient '1': expected a patient either in the training"),
        (csv_line("new", 9) + ";x", "can't be read: .*in line 10, saw 8"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=rf"FETAL_PLANES_DB_data\.csv:? .*{message}"):
        read_metadata(write_table(tmp_path, [*LINES, line]))


def test_an_error_names_the_line_that_an_editor_shows_and_many_are_counted(tmp_path):
    lines = [LINES[0], "", *(csv_line(f"i{index}", "x") for index in range(12))]
    with pytest.raises(ValueError, match=r"12 values don't fit, line 4, patient 'x'.*line 8, patient 'x'[^;]*$"):
        read_metadata(write_table(tmp_path, lines))


# --- tasks -------------------------------------------------------------------------------------------


def test_without_a_file_there_are_the_two_tasks_of_the_study(tmp_path):
    assert read_tasks(tmp_path) == TASKS


@pytest.mark.parametrize(
    ("classes", "labels"),
    [("[Yes, No]", ("Yes", "No")), ("[01, 2]", ("01", "2")), ("[1.0, 2.50]", ("1.0", "2.50")), ("{a: A, b: B}", "ab")],
)
def test_labels_of_a_task_are_the_text_that_stands_there(tmp_path, classes, labels):
    (tmp_path / TASKS_NAME).write_text(f"mine: {{label_column: Sex, classes: {classes}, left_out: {{null: unknown}}}}")
    assert read_tasks(tmp_path)["mine"] == Task("mine", "Sex", tuple(labels), {"null": "unknown"})


@pytest.mark.parametrize("text", ["", "mine", "[mine]", "mine: [unclosed"])
def test_a_file_that_holds_no_tasks_is_named(tmp_path, text):
    (tmp_path / TASKS_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"(?s)tasks\.yaml.*; expected entries of the form 'name: \{label_column"):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mine: 3", ""),
        ("mine: {label_column: plane}", "'classes'"),
        ("mine: {classes: [a, b]}", "'label_column'"),
        ("mine: {label_column: [plane], classes: [a, b]}", ""),
        ("mine: {label_column: plane, classes: a}", "one class"),
        ("mine: {label_column: plane, classes: [a]}", "two classes or more"),
        ("mine: {label_column: plane, classes: [a, b, a]}", "no label twice"),
        ("mine: {label_column: plane, classes: [a, b], left_out: {b: why}}", "no label twice"),
        ("mine: {label_column: plane, classes: [a, b], left_out: [c]}", ""),
        ("mine: {label_column: plane, classes: [a, b], leftout: {c: why}}", r"unknown keys \['leftout'\]"),
        ("left/right: {label_column: plane, classes: [a, b]}", "file names"),
        ("planes: {label_column: plane, classes: [a, b]}", "the name of a task of the study"),
    ],
)
def test_a_malformed_task_is_named_with_the_form(tmp_path, entry, message):
    (tmp_path / TASKS_NAME).write_text(f"good: {{label_column: plane, classes: [a, b]}}\n\n{entry}\n")
    name = entry.split(":")[0]
    with pytest.raises(
        ValueError, match=rf"tasks\.yaml, task '{name}': .*{message}.*; expected entries of the form 'n"
    ):
        read_tasks(tmp_path)


def test_a_label_that_no_task_knows_is_named(tmp_path):
    folder = write_folder(tmp_path / "data", [*LINES, csv_line("new", 9, "Fetal foot")])
    with pytest.raises(ValueError, match=r"'planes' knows .*, not plane \['Fetal foot'\], first of new; .*tasks\.yaml"):
        Dataset(folder, tmp_path).task("planes")
    with pytest.raises(ValueError, match=r"task='femurs' is unknown; known are \['brain_planes', 'planes'\]"):
        Dataset(folder, tmp_path).task("femurs")


def test_a_task_with_too_few_classes_or_a_class_without_training_patients_is_refused(tmp_path):
    lines = [*LINES, csv_line("new", 9, "Fetal brain", brain_plane="Trans-thalamic")]
    dataset = Dataset(write_folder(tmp_path / "a", lines), tmp_path)
    with pytest.raises(ValueError, match=r"'brain_planes' finds the classes \['Trans-thalamic'\]"):
        dataset.task("brain_planes")
    assert list(dataset.usable_tasks()) == ["planes"]
    lines = [*LINES, csv_line("new", 9, "Maternal cervix", train=0)]
    with pytest.raises(ValueError, match=r"\['Maternal cervix'\] of them without a training patient"):
        Dataset(write_folder(tmp_path / "b", lines), tmp_path).task("planes")


def test_a_data_set_of_other_classes_needs_tasks_and_works_with_them(tmp_path):
    lines = [line.replace("Fetal femur", "left").replace("Fetal thorax", "01") for line in plane_lines(8, 4)]
    folder = write_folder(tmp_path / "data", lines)
    with pytest.raises(ValueError, match=r"data serves no task: .*'planes' knows .*, not plane \['01', 'left'\]"):
        open_dataset(folder, results_dir=tmp_path)
    (folder / TASKS_NAME).write_text("side: {label_column: Plane, classes: [left, 01]}")
    dataset = open_dataset(folder, results_dir=tmp_path)
    assert list(dataset.usable_tasks()) == ["side"]
    assert dataset.labels(dataset.task("side")).tolist() == [0, 1] * 12


def test_an_own_label_column_is_read_and_no_label_of_it_loses_its_training_patients(tmp_path):
    lines = plane_lines(n_train=12, n_test=4)
    rare = {"p3_femur", "p3_thorax"}  # one training patient has the label
    lines = [f"{line.strip()};{'yes' if line.split(';')[0] in rare or 'p13' in line else 'no'}" for line in lines]
    folder = write_folder(tmp_path / "data", lines, header=HEADER.strip() + ";Sign")
    (folder / TASKS_NAME).write_text("sign: {label_column: Sign, classes: [yes, no]}")
    for seed in range(5):
        dataset = Dataset(folder, tmp_path, split_seed=seed)
        assert (dataset.metadata["subset"][dataset.metadata["image_name"].isin(rare)] == "train").all()
        assert dataset.summary("sign").loc[("class", "yes"), "train"] == 2


# --- rows, identity, images --------------------------------------------------------------------------


def test_rows_of_a_task_by_subset_and_labels_as_positions(dataset):
    task = dataset.task("planes")
    assert task.classes == ("Fetal femur", "Fetal thorax") and dataset.labels(task).tolist() == [0, 1] * 16
    rows = [dataset.rows(subset, task) for subset in ("train", "development", "test")]
    assert sorted(np.concatenate(rows)) == list(range(32))
    assert set(dataset.patients[rows[2]]) == {13, 14, 15, 16}


def test_a_draw_is_one_order_of_all_training_patients(dataset):
    train = set(dataset.patients[dataset.rows("train")])
    orders = [dataset.patient_order(draw).tolist() for draw in (0, 0, 1)]
    assert set(orders[0]) == train and len(orders[0]) == len(train)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == np.random.default_rng([0, 0]).permutation(sorted(train)).tolist()


@pytest.mark.parametrize(
    "choice", [{"blank_text": True}, {"geometry": "pad"}, {"split_seed": 1}, {"development_fraction": 0.5}], ids=str
)
def test_the_key_changes_with_every_choice(dataset, choice):
    assert len(dataset.key) == 16
    assert replace(dataset, **choice).key != dataset.key


def test_the_key_knows_contents_labels_and_tasks_and_no_place(folder, tmp_path):
    keys = [Dataset(folder, tmp_path / "cache").key]
    picture = folder / "Images" / "p1_femur.png"
    before = picture.read_bytes()
    picture.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # another file of the same size
    keys.append(Dataset(folder, tmp_path / "cache").key)
    picture.write_bytes(before)
    table = folder / CSV_NAME
    text = table.read_text()
    table.write_text(text.replace("Aloka", "Other", 1))
    keys.append(Dataset(folder, tmp_path / "cache").key)
    table.write_text(text)
    (folder / TASKS_NAME).write_text("mine: {label_column: plane, classes: [Fetal femur, Fetal thorax]}")
    keys.append(Dataset(folder, tmp_path / "cache").key)
    assert len(set(keys)) == 4
    (folder / TASKS_NAME).unlink()
    assert Dataset(folder.rename(tmp_path / "elsewhere"), tmp_path / "other_cache").key == keys[0]


def test_a_data_set_travels_small_and_arrives_equal(dataset):
    assert len(dataset.metadata)  # has been read
    sent = pickle.dumps(dataset)
    arrived = pickle.loads(sent)
    assert len(sent) < 1000
    assert arrived == dataset and arrived.key == dataset.key


def test_images_come_in_the_order_of_the_table_and_blanking_spares_the_question_about_the_corner(dataset):
    files = [dataset.data_dir / "Images" / f"{name}.png" for name in dataset.metadata["image_name"]]
    expected = np.array([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(dataset.images(32, progress=False), expected)
    blanked = replace(dataset, blank_text=True)
    n_rows, n_columns = (round(share * 32) for share in TEXT_CORNER)
    expected[:, :n_rows, 32 - n_columns :] = 0
    np.testing.assert_array_equal(blanked.images(32, progress=False), expected)
    corner = [one.images(32, geometry="text_corner", progress=False) for one in (dataset, blanked)]
    np.testing.assert_array_equal(*corner)
    assert corner[0].any()


@pytest.mark.parametrize("choice", [{"geometry": "stretch"}, {"blank_text": "false"}, {"blank_text": 0}])
def test_a_choice_that_does_not_exist_is_refused_at_once(folder, tmp_path, choice):
    with pytest.raises(ValueError, match=f"{next(iter(choice))}=.*: expected"):
        open_dataset(folder, results_dir=tmp_path, **choice)


# --- opening -----------------------------------------------------------------------------------------


def test_opening_looks_for_every_image_and_decodes_none(folder, tmp_path):
    dataset = open_dataset(folder, results_dir=tmp_path / "results", split_seed=3)
    assert dataset == Dataset(folder, tmp_path / "results" / "cache", split_seed=3)
    assert not (tmp_path / "results").exists()
    assert not dataset.is_phantom and dataset.title == "mine"
    (folder / "Images" / "p1_femur.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 32 images are missing, first \['p1_femur\.png'\]"):
        open_dataset(folder, results_dir=tmp_path / "results")


def test_no_path_is_the_phantom_of_so_many_patients(tiny_phantom, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(data, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(data, "phantom_dir", lambda root, **how: asked.update(root=root, **how) or tiny_phantom)
    dataset = open_dataset("", results_dir=tmp_path / "results", phantom_patients=24)
    assert dataset.data_dir == tiny_phantom and dataset.is_phantom
    assert dataset.title == "phantom (tiny_phantom)"
    assert asked == {"root": tmp_path / "data", "n_patients": 24, "seed": 0}


def test_a_kept_table_stands_for_the_data_set_without_its_images(folder, tmp_path):
    dataset = open_dataset(folder, results_dir=tmp_path / "results")
    other = replace(dataset, split_seed=1)
    for one in (dataset, other, dataset):
        keep_metadata(one)
    assert len(json.loads((tmp_path / "results" / "data" / "data.json").read_text())["keys"]) == 2
    shutil.rmtree(folder / "Images")
    shutil.rmtree(tmp_path / "results" / "cache", ignore_errors=True)  # sent to somebody else
    kept = open_dataset("", results_dir=tmp_path / "results")
    assert (kept.key, kept.title, kept.is_phantom) == (dataset.key, "mine", False)
    assert open_dataset("", results_dir=tmp_path / "results", split_seed=1).key == other.key
    pd.testing.assert_frame_equal(kept.metadata, dataset.metadata)
    with pytest.raises(FileNotFoundError, match="keeps only tables and runs; give a data_dir"):
        kept.images(32)
    with pytest.raises(ValueError, match=r"keeps results of .*, not of 0\.2 7 crop False"):
        _ = replace(kept, split_seed=7).key
