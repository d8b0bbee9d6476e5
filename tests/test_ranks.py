"""One of several processes, as far as it can be seen without the others."""

import os

import pytest
import torch
import torch.distributed as dist

from fetal_utils import ranks
from fetal_utils.ranks import ALONE, NO_ANSWER, LostProcessError, Ranks, claim_device, current_ranks, meet


@pytest.fixture
def board():
    return dist.HashStore()


@pytest.fixture
def of_torchrun(monkeypatch):
    """The environment of the first of two processes that torchrun starts on a machine."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "test"}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


# --- alone ---


def test_a_process_that_torchrun_did_not_start_is_alone_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some batch systems do
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert meet() is ALONE


def test_the_only_process_of_torchrun_is_alone(of_torchrun):
    of_torchrun.setenv("WORLD_SIZE", "1")
    assert meet() is ALONE


def test_alone_a_process_is_the_first_and_waits_for_nobody(capsys):
    ALONE.join("cpu")
    with ALONE.first_one_first():
        ALONE.say("nothing")
    ALONE.wait_for_all()
    ALONE.report("error: a message")
    ALONE.leave()
    assert ALONE.is_first and ALONE.on_this_machine == 1
    assert current_ranks() is ALONE
    assert not dist.is_initialized()
    assert capsys.readouterr() == ("", "error: a message\n")


# --- of torchrun ---


def test_processes_that_torchrun_starts_again_find_no_note_of_those_before(of_torchrun, capsys):
    kept = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps it
    of_torchrun.setenv("MASTER_ADDR", "127.0.0.1")
    of_torchrun.setenv("MASTER_PORT", str(kept.port))
    of_torchrun.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for attempt in (0, 0, 1):
        of_torchrun.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        met = meet()
        assert (met.rank, met.world_size, met.is_first) == (0, 2, True)
        met.report(f"error: of attempt {attempt}")
    assert capsys.readouterr().err == "error: of attempt 0\nerror: of attempt 1\n"


# --- one message ---


def test_of_several_that_fail_only_the_first_to_report_is_heard(board, capsys):
    for rank in (1, 0, 2):
        Ranks(rank, 3, board).report(f"error: of {rank}")
    assert capsys.readouterr().err == "error: of 1\n"


def test_whoever_loses_a_process_learns_why_it_failed(board):
    try:
        raise ArithmeticError("too large")
    except ArithmeticError as error:
        Ranks(1, 2, board).report(f"error: {error}")
    with pytest.raises(LostProcessError) as lost, Ranks(0, 2, board).listening():
        raise RuntimeError("Connection closed by peer")
    message = str(lost.value)
    assert message.startswith("process 1: error: too large\n")
    assert "Traceback" in message and "ArithmeticError" in message


def test_a_process_that_was_killed_left_no_reason_and_how_to_go_on_is_said(board):
    with pytest.raises(LostProcessError) as lost, Ranks(0, 2, board).listening():
        raise RuntimeError("closed by peer")
    assert str(lost.value) == NO_ANSWER
    assert str(lost.value.__cause__) == "closed by peer"


def test_an_error_of_another_kind_is_no_lost_process(board):
    with pytest.raises(KeyError), Ranks(0, 2, board).listening():
        raise KeyError("a mistake here")


def test_without_the_board_every_process_says_its_own(capsys):
    class Broken:
        def add(self, key, amount):
            raise dist.DistNetworkError("gone")

    Ranks(1, 2, Broken()).report("error: a message")
    assert capsys.readouterr().err == "error: a message\n"


# --- devices ---


def test_processes_on_a_cpu_talk_by_gloo(of_torchrun):
    assert claim_device("cpu") == "gloo"


def on_gpus(patch, n_gpus):
    """A machine with GPUs, as far as `claim_device` looks; the one that a process takes is appended to the list."""
    taken = []
    patch.setattr(ranks, "pick_device", lambda device: torch.device("cuda" if device == "auto" else device))
    patch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    patch.setattr(torch.cuda, "set_device", taken.append)
    return taken


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_takes_the_gpu_of_its_local_rank(of_torchrun, device):
    taken = on_gpus(of_torchrun, 4)
    of_torchrun.setenv("LOCAL_RANK", "1")
    of_torchrun.setenv("RANK", "5")
    assert claim_device(device) == "cpu:gloo,cuda:nccl"
    assert taken == [1]


def test_more_processes_than_gpus_are_refused_with_the_number_that_can_run(of_torchrun):
    taken = on_gpus(of_torchrun, 1)
    with pytest.raises(ValueError, match="2 processes on a machine with 1 GPUs; start torchrun --nproc-per-node 1"):
        claim_device("auto")
    assert not taken


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_device_that_processes_cannot_share_is_refused(of_torchrun, device):
    on_gpus(of_torchrun, 4)
    with pytest.raises(ValueError, match=f"device='{device}' can't be shared by 2 processes; give auto, cuda or cpu"):
        claim_device(device)


def test_processes_of_one_machine_are_counted(of_torchrun, board):
    of_torchrun.setenv("LOCAL_WORLD_SIZE", "2")
    assert Ranks(5, 8, board).on_this_machine == 2
    assert "LOCAL_WORLD_SIZE" in os.environ and ALONE.on_this_machine == 1
