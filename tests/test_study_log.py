"""The log of a study and the lines that it hears from a kernel."""

import pytest

from fetal_utils.study_log import LOG_NAME, Listener, study_log


def heard(*pieces):
    lines = []
    listener = Listener(lines.append)
    for piece in pieces:
        listener.write(piece)
        listener.flush()
    return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["one\ntwo\n"], ["    one", "    two"]),
        (["on", "e", "\ntw"], ["    one"]),
        (["\n\n  \n"], []),
        (["  indented\n"], ["      indented"]),
        (["windows\r\n"], ["    windows"]),
        (["\r10%", "\r50%", "\r100%\n"], ["    100%"]),
        (["\r10%\r        \r"], []),
    ],
)
def test_whole_lines_are_handed_on_in_their_last_state(pieces, lines):
    assert heard(*pieces) == lines


def test_the_screen_has_the_lines_and_the_file_their_time_as_well_and_the_details(tmp_path, capsys):
    for word in ("first", "second"):
        with study_log(tmp_path / "new") as log:
            log.debug(f"{word} detail")
            log.info(f"{word} line")
    assert capsys.readouterr().out == "first line\nsecond line\n"
    text = (tmp_path / "new" / LOG_NAME).read_text()
    assert [line[20:] for line in text.splitlines()] == ["first detail", "first line", "second detail", "second line"]


def test_a_full_disk_does_not_stop_a_study_that_only_wanted_to_say_so(tmp_path, capsys):
    with study_log(tmp_path) as log:
        log.handlers[0].stream.close()
        log.handlers[0].stream = open("/dev/full", "w")  # noqa: SIM115, PTH123 (the handler closes it)
        log.info("a line")
        log.handlers[0].stream = None
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a line\n", "")
