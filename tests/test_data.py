from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
from data_folders import HEADER, csv_line, plane_lines, write_table

from fetal_utils.baselines import predict_by_value
from fetal_utils.data import CSV_NAME, read_metadata
from fetal_utils.tasks import TASKS, TASKS_NAME, Task, find_task, present_classes, read_tasks

LINES = plane_lines()  # 8 rows, lines 2 to 9 of the file
BRAIN = MappingProxyType({"plane": "Fetal brain"})


@pytest.fixture(scope="module")
def real_table(real_data):
    return read_metadata(real_data)


def counts(table, column):
    return table[column].value_counts().to_dict()


# --- the published table -----------------------------------------------------------------------------


def test_the_real_table_has_the_published_rows_patients_and_columns(real_table):
    assert len(real_table) == 12_400
    assert real_table["patient"].nunique() == 1_792
    assert list(real_table.columns) == ["image_name", "patient", "plane", "brain_plane", "operator", "machine", "split"]
    assert pd.api.types.is_integer_dtype(real_table["patient"])
    assert real_table["image_name"].is_unique
    assert real_table.index.equals(pd.RangeIndex(12_400))


def test_the_real_table_has_the_published_labels(real_table):
    assert counts(real_table, "plane") == {
        "Other": 4213,
        "Fetal brain": 3092,
        "Fetal thorax": 1718,
        "Maternal cervix": 1626,
        "Fetal femur": 1040,
        "Fetal abdomen": 711,
    }
    assert counts(real_table, "brain_plane") == {
        "Not A Brain": 9308,
        "Trans-thalamic": 1638,
        "Trans-cerebellum": 714,
        "Trans-ventricular": 597,
        "Other": 143,
    }


def test_the_real_table_has_the_published_operators_machines_and_split(real_table):
    assert counts(real_table, "operator") == {"Other": 3613, "Op. 3": 3560, "Op. 1": 2792, "Op. 2": 2435}
    assert counts(real_table, "machine") == {"Voluson E6": 5862, "Aloka": 5114, "Voluson S10": 1082, "Other": 342}
    assert counts(real_table, "split") == {"train": 7129, "test": 5271}
    assert real_table.groupby("split")["patient"].nunique().to_dict() == {"train": 896, "test": 896}


def test_other_stands_for_four_different_things_that_are_kept_apart(real_table):
    is_other = real_table[["plane", "brain_plane", "operator", "machine"]] == "Other"
    assert is_other.sum().to_dict() == {"plane": 4213, "brain_plane": 143, "operator": 3613, "machine": 342}
    assert not is_other.duplicated().all()
    assert not (is_other["plane"] & is_other["brain_plane"]).any()  # a brain image is no image of another plane


def test_no_value_of_the_real_table_keeps_a_space_or_a_file_ending(real_table):
    text = real_table.drop(columns="patient")
    assert text.equals(text.apply(lambda column: column.str.strip()))
    assert not real_table["image_name"].str.endswith(".png").any()
    assert real_table["image_name"][0] == "Patient00001_Plane1_1_of_15"


def test_voluson_s10_is_nearly_all_in_the_official_test_set(real_table):
    s10 = real_table[real_table["machine"] == "Voluson S10"]
    assert counts(s10, "split") == {"test": 1071, "train": 11}


def test_the_machine_alone_names_the_plane_of_two_in_five_test_images(real_table):
    train, test = (real_table[real_table["split"] == split] for split in ("train", "test"))
    planes = list(TASKS["planes"].classes)
    labels = train["plane"].map(planes.index)
    predicted = predict_by_value(train["machine"], labels, test["machine"])
    accuracy = (np.array(planes)[predicted] == test["plane"]).mean()
    assert accuracy == pytest.approx(0.398, abs=0.0005)


def test_the_real_subset_lacks_two_planes_and_has_the_described_counts(real_data):
    table = read_metadata(real_data / "fetal_planes_subset")
    assert counts(table, "split") == {"train": 888, "test": 393}
    brain = table[table["plane"] == "Fetal brain"]
    assert pd.crosstab(brain["brain_plane"], brain["split"]).to_dict() == {
        "train": {"Trans-thalamic": 167, "Trans-cerebellum": 62, "Trans-ventricular": 51, "Other": 13},
        "test": {"Trans-thalamic": 74, "Trans-cerebellum": 32, "Trans-ventricular": 32, "Other": 4},
    }
    present = present_classes(table, TASKS["planes"])
    assert present.classes == ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")
    assert present.short_names == ("abdomen", "brain", "femur", "thorax")
    assert present_classes(table, TASKS["brain_planes"]) == TASKS["brain_planes"]


def test_the_real_sample_has_the_described_counts(real_data):
    table = read_metadata(real_data / "fetal_planes_sample")
    assert len(table) == 116
    assert table["patient"].nunique() == 105
    assert counts(table, "split") == {"train": 112, "test": 4}
    assert table.groupby("plane")["patient"].agg(["size", "nunique"]).T.to_dict("list") == {
        "Fetal abdomen": [9, 9],
        "Fetal brain": [75, 71],
        "Fetal femur": [8, 8],
        "Fetal thorax": [8, 8],
        "Maternal cervix": [7, 7],
        "Other": [9, 8],
    }
    assert counts(table, "brain_plane") == {
        "Trans-ventricular": 62,
        "Not A Brain": 41,
        "Trans-thalamic": 6,
        "Trans-cerebellum": 5,
        "Other": 2,
    }


# --- reading -----------------------------------------------------------------------------------------


def test_a_table_is_read_in_the_order_of_its_lines(tmp_path):
    lines = [csv_line("b", 7, "Fetal brain", brain_plane="Other"), csv_line("a", 2, machine="Other", train=0)]
    table = read_metadata(write_table(tmp_path, lines))
    assert table.to_dict("list") == {
        "image_name": ["b", "a"],
        "patient": [7, 2],
        "plane": ["Fetal brain", "Fetal femur"],
        "brain_plane": ["Other", "Not A Brain"],
        "operator": ["Op. 1", "Op. 1"],
        "machine": ["Aloka", "Other"],
        "split": ["train", "test"],
    }


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (HEADER.strip(), [line.strip() for line in LINES]),
        ("\ufeff" + HEADER, LINES),  # as spreadsheets save it
        (HEADER + "\r", [line + "\r" for line in LINES]),
        (HEADER, [line.replace(";", ".png;", 1) for line in LINES]),
        (HEADER, [LINES[0], "", *LINES[1:], "", ""]),
    ],
    ids=["no trailing spaces", "byte order mark", "CRLF", "names with .png", "empty lines"],
)
def test_harmless_variants_of_the_file_read_alike(tmp_path, header, lines):
    expected = read_metadata(write_table(tmp_path / "as_published", LINES))
    pd.testing.assert_frame_equal(read_metadata(write_table(tmp_path / "variant", lines, header=header)), expected)


def test_the_order_of_columns_does_not_matter(tmp_path):
    backwards = [";".join(reversed(line.split(";"))) for line in [HEADER, *LINES]]
    table = read_metadata(write_table(tmp_path / "backwards", backwards[1:], header=backwards[0]))
    pd.testing.assert_frame_equal(table, read_metadata(write_table(tmp_path / "forwards", LINES)))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir='.*nowhere' is not a folder.*FETAL_PLANES_DB_data\.csv"):
        read_metadata(tmp_path / "nowhere")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"FETAL_PLANES_DB_data\.csv is missing"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"FETAL_PLANES_DB_data\.csv is no ';'-separated table"),
        (b"\x89PNG\xff\xfe", r"FETAL_PLANES_DB_data\.csv is no ';'-separated table"),
        (HEADER.encode() + b"\n", r"FETAL_PLANES_DB_data\.csv has no rows"),
        (HEADER.encode() + b"\n\n\n", r"FETAL_PLANES_DB_data\.csv has no rows"),
    ],
    ids=["empty", "binary", "header only", "empty lines only"],
)
def test_a_file_without_a_table_is_named(tmp_path, content, message):
    (tmp_path / CSV_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_metadata(tmp_path)


def test_missing_and_unknown_columns_are_named(tmp_path):
    folder = write_table(tmp_path, [f"{line};x" for line in LINES], header=HEADER.replace("Plane;", "Plan;") + ";Age")
    with pytest.raises(ValueError, match=r"missing \['Plane'.*unknown \['Plan', .*'Age'\]"):
        read_metadata(folder)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    folder = write_table(tmp_path, [f"{line};x" for line in LINES], header=HEADER + ";Plane")
    with pytest.raises(ValueError, match=r"unknown \['Plane"):
        read_metadata(folder)


def test_a_comma_separated_table_is_refused(tmp_path):
    folder = write_table(tmp_path, [line.replace(";", ",") for line in LINES], header=HEADER.replace(";", ","))
    with pytest.raises(ValueError, match="expected Image_name;Patient_num;Plane"):
        read_metadata(folder)


def test_rows_longer_than_the_header_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"FETAL_PLANES_DB_data\.csv: the rows hold more values than the header"):
        read_metadata(write_table(tmp_path / "all", [f"{line};x" for line in LINES]))
    with pytest.raises(ValueError, match="line 10"):
        read_metadata(write_table(tmp_path / "last", [*LINES, csv_line("new", 9) + ";x"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (csv_line("new", "x"), "line 10, patient 'x': expected a whole number"),
        (csv_line("new", ""), "line 10, patient '': expected a whole number"),
        (csv_line("new", "1.5"), "line 10, patient '1.5': expected a whole number"),
        (csv_line("new", "9" * 20), "line 10, patient '99999999999999999999': expected a whole number"),
        (csv_line("new", -3), "line 10, patient -3: expected a patient number, 0 or more"),
        (csv_line("new", 9, train=2), r"line 10, split '2': expected 1 \(train\) or 0 \(test\)"),
        (csv_line("new", 9, train=""), "line 10, split ''"),
        (csv_line("new", 9, ""), "line 10, plane '': expected not empty"),
        (csv_line("new", 9, machine=" "), "line 10, machine '': expected not empty"),
        ("new;9;Fetal femur", "line 10, brain_plane ''.*line 10, operator ''.*line 10, machine ''"),
        (csv_line("", 9), "line 10, image_name '': expected a plain file name"),
        (csv_line("../secret", 9), r"line 10, image_name '\.\./secret': expected a plain file name"),
        (csv_line("/etc/passwd", 9), "line 10, image_name '/etc/passwd': expected a plain file name"),
        (csv_line(r"..\secret", 9), "line 10, image_name .*expected a plain file name"),
        (csv_line("..", 9), r"line 10, image_name '\.\.': expected a plain file name"),
        (csv_line("p1_femur", 1), "line 2, image_name 'p1_femur': stands twice; line 10, image_name"),
        (csv_line("p1_femur.png", 1), "line 2, image_name 'p1_femur': stands twice; line 10, image_name"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=rf"FETAL_PLANES_DB_data\.csv: {message}"):
        read_metadata(write_table(tmp_path, [*LINES, line]))


def test_an_error_names_the_line_that_an_editor_shows_after_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match="line 4, patient 'x'"):
        read_metadata(write_table(tmp_path, [LINES[0], "", csv_line("new", "x")]))


def test_many_bad_values_are_counted_and_the_first_shown(tmp_path):
    with pytest.raises(ValueError, match=r"line 6, patient 'x'.*\(and 7 more\)$"):
        read_metadata(write_table(tmp_path, [csv_line(f"i{index}", "x") for index in range(12)]))


def test_a_patient_in_both_splits_is_named_with_the_lines(tmp_path):
    lines = [*LINES, csv_line("new", 1, train=0)]  # patient 1 trains in lines 2 and 3
    with pytest.raises(ValueError, match=r"patients \[1\] are in the training and in the test set.*lines \[2, 3, 10\]"):
        read_metadata(write_table(tmp_path, lines))


# --- tasks -------------------------------------------------------------------------------------------


def test_without_a_file_there_are_the_two_tasks_of_the_study(tmp_path):
    assert read_tasks(tmp_path) == TASKS
    assert len(TASKS["planes"].classes) == 6
    assert TASKS["brain_planes"].classes == ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular")


OWN_TASK = """
trimester:
  label_column: Trimester
  classes: {2: second, 3: third}
  left_out: {unknown: no date of the scan}
"""


def test_a_task_of_ones_own_on_a_further_column(tmp_path):
    trimesters = ["2", "3", "unknown", "2", "3", "3", "2", "2"]
    lines = [f"{line.strip()};{trimester}" for line, trimester in zip(LINES, trimesters, strict=True)]
    folder = write_table(tmp_path, lines, header=HEADER.strip() + ";Trimester")
    (folder / TASKS_NAME).write_text(OWN_TASK)
    task = find_task("trimester", read_tasks(folder))
    assert task == Task(
        name="trimester",
        label_column="Trimester",
        classes=("2", "3"),
        short_names=("second", "third"),
        left_out={"unknown": "no date of the scan"},
    )
    table = read_metadata(folder, extra_columns=["Trimester"])
    assert table["Trimester"].tolist() == trimesters
    assert present_classes(table, task) == task
    with pytest.raises(ValueError, match=r"unknown \['Trimester'\]"):
        read_metadata(folder)


@pytest.mark.parametrize("column", ["Plane", "plane"])
def test_a_task_names_its_column_as_the_file_or_as_the_table_does(tmp_path, column):
    (tmp_path / TASKS_NAME).write_text(f"chest: {{label_column: {column}, classes: {{Fetal femur: f, Other: o}}}}")
    assert read_tasks(tmp_path)["chest"].label_column == "plane"


def test_a_task_may_not_take_the_name_of_one_of_the_study(tmp_path):
    (tmp_path / TASKS_NAME).write_text("planes: {label_column: plane, classes: {Fetal femur: f, Other: o}}")
    with pytest.raises(ValueError, match=r"tasks\.yaml: \['planes'\] are tasks of the study"):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mine",
        "[mine]",
        "mine: [unclosed",
        "mine: 3",
        "mine: {label_column: plane}",
        "mine: {classes: {a: a, b: b}}",
        "mine: {label_column: [plane], classes: {a: a, b: b}}",
        "mine: {label_column: plane, classes: [a, b]}",
        "mine: {label_column: plane, classes: {a: a}}",
        "mine: {label_column: plane, classes: {a: a, b: b}, left_out: [Other]}",
    ],
)
def test_a_malformed_tasks_file_is_named_with_the_form_it_needs(tmp_path, text):
    (tmp_path / TASKS_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"tasks\.yaml: each task needs 'label_column' and 'classes: \{label"):
        read_tasks(tmp_path)


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"task='femur' is unknown; known are \['brain_planes', 'planes'\]"):
        find_task("femur", TASKS)


def test_a_task_needs_two_classes_and_a_short_name_for_each():
    with pytest.raises(ValueError, match=r"'one' has the classes \['a'\]: at least two"):
        Task(name="one", label_column="plane", classes=("a",), short_names=("a",))
    with pytest.raises(ValueError, match="2 classes but 1 short names"):
        Task(name="two", label_column="plane", classes=("a", "b"), short_names=("a",))


# --- classes a data set has --------------------------------------------------------------------------


def test_absent_classes_are_dropped_in_the_order_of_the_task(tmp_path):
    table = read_metadata(write_table(tmp_path, LINES))
    present = present_classes(table, TASKS["planes"])
    assert present.classes == ("Fetal femur", "Fetal thorax")
    assert present.short_names == ("femur", "thorax")


def test_a_class_that_no_task_knows_is_named_with_its_line(tmp_path):
    table = read_metadata(write_table(tmp_path, [*LINES, csv_line("new", 9, "Fetal foot")]))
    with pytest.raises(ValueError, match=r"plane 'Fetal foot' of new \(line 10\) is unknown to task 'planes'"):
        present_classes(table, TASKS["planes"])


def test_a_task_of_which_the_data_set_has_one_class_is_refused(tmp_path):
    lines = [*LINES, csv_line("new", 9, brain_plane="Trans-thalamic", **BRAIN)]
    table = read_metadata(write_table(tmp_path, lines))
    with pytest.raises(ValueError, match=r"'brain_planes' finds the classes \['Trans-thalamic'\].*at least two"):
        present_classes(table, TASKS["brain_planes"])


def test_a_class_that_only_test_patients_have_is_refused(tmp_path):
    table = read_metadata(write_table(tmp_path, [*LINES, csv_line("new", 9, "Maternal cervix", train=0)]))
    with pytest.raises(ValueError, match=r"no training patient has \['Maternal cervix'\]"):
        present_classes(table, TASKS["planes"])
