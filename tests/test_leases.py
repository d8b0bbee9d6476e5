"""Leases of runs: one owner at a time, named, and replaced when it dies."""

import getpass
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fetal_utils.leases import Lease, LeaseLostError, Owner, live_owner, read_owner

LEASE_S = 1.2  # a heartbeat each 0.2 s

HOLDER = """
import sys, time
from fetal_utils.leases import Lease
lease = Lease(sys.argv[1], lease_s=float(sys.argv[2]))
assert lease.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run.lease"


def take(path, **options) -> Lease:
    lease = Lease(path, **{"lease_s": LEASE_S} | options)
    assert lease.acquire()
    return lease


def wait_until(holds, *, timeout_s=20.0) -> float:
    """Seconds until something holds."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout_s
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture
def holder(path):
    """Another process that holds the lease and does nothing else."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), str(LEASE_S)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def as_if_from(path, *, host):
    """Make a lease's file name another machine's process as its owner, as far as can be told from here."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(f"host={host}\n" if line.startswith("host=") else line for line in lines))


# --- one owner ---


def test_a_lease_has_one_owner_until_it_is_released(path):
    first, second = take(path), Lease(path, lease_s=LEASE_S)
    assert not second.acquire()
    first.release()
    assert not path.exists()
    assert second.acquire()
    second.release()


def test_the_owner_is_named_with_user_host_and_pid(path):
    lease = take(path)
    owner = read_owner(path)
    assert owner == live_owner(path) == Owner(user=path.owner(), host=socket.gethostname(), pid=os.getpid())
    assert str(owner) == f"{path.owner()}@{socket.gethostname()}, pid {os.getpid()}"
    lease.release()
    assert read_owner(path) is None
    assert live_owner(path) is None


def test_the_user_of_a_lease_is_who_took_it(path):
    lease = take(path)
    assert read_owner(path).user == getpass.getuser()
    lease.release()


def test_a_heartbeat_keeps_a_lease_for_much_longer_than_its_length(path):
    lease, other = take(path, lease_s=0.3), Lease(path, lease_s=0.3)
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends:
        assert not other.acquire()
        time.sleep(0.05)
    lease.check()
    lease.release()


# --- owners that die ---


def test_a_killed_owner_of_this_machine_is_replaced_at_once(path, holder):
    lease = Lease(path)  # of the default minute
    assert not Lease(path, lease_s=LEASE_S).acquire()
    assert live_owner(path).pid == holder.pid
    holder.kill()
    holder.wait()
    assert live_owner(path) is None
    assert wait_until(lease.acquire) < 10
    assert read_owner(path).pid == os.getpid()
    lease.release()


def test_an_owner_of_another_machine_is_replaced_only_when_its_lease_has_run_out(path, holder):
    as_if_from(path, host="elsewhere")
    lease = Lease(path, lease_s=LEASE_S)
    assert not lease.acquire()
    assert live_owner(path, lease_s=LEASE_S) == Owner(user=path.owner(), host="elsewhere", pid=holder.pid)
    time.sleep(2 * LEASE_S)
    assert not lease.acquire()  # it still gives signs of life
    holder.kill()
    holder.wait()
    assert wait_until(lease.acquire) > LEASE_S / 2
    lease.release()


def test_a_silent_owner_of_another_machine_counts_as_gone_in_lists_when_its_lease_has_run_out(path, holder):
    as_if_from(path, host="elsewhere")
    holder.kill()
    holder.wait()
    assert live_owner(path, lease_s=60) is not None
    long_ago = time.time() - 61
    os.utime(path, (long_ago, long_ago))
    assert live_owner(path, lease_s=60) is None


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes that are paused")
def test_a_paused_owner_loses_its_lease_and_its_file_is_its_successors(path, holder):
    lease = Lease(path, lease_s=LEASE_S)
    os.kill(holder.pid, signal.SIGSTOP)
    wait_until(lease.acquire)
    os.kill(holder.pid, signal.SIGCONT)
    time.sleep(LEASE_S)  # for the other's heartbeat
    lease.check()
    assert read_owner(path).pid == os.getpid()
    lease.release()


def test_whoever_lost_a_lease_is_told_who_has_it_now_and_leaves_it_alone(path):
    lost = take(path)
    path.unlink()
    successor = take(path)
    with pytest.raises(LeaseLostError, match=rf"no sign of life for 1.2 s.*; .*, pid {os.getpid()} has taken over"):
        lost.check()
    lost.release()
    successor.check()
    successor.release()


def test_a_lease_whose_file_is_gone_is_lost(path):
    lease = take(path)
    path.unlink()
    with pytest.raises(LeaseLostError, match="its file is gone"):
        lease.check()
    lease.release()


def test_an_empty_file_as_a_crash_of_the_machine_leaves_it_is_waited_for_and_then_taken(path):
    path.touch()
    lease = Lease(path, lease_s=0.3)
    assert not lease.acquire()
    assert wait_until(lease.acquire) > 0.3
    lease.check()
    lease.release()
    assert list(path.parent.iterdir()) == []


def test_where_names_cannot_be_swapped_a_dead_owner_is_replaced_too(path, holder, monkeypatch):
    # as on NFS, where the library counts such a lease as held
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *names: False)
    holder.kill()
    holder.wait()
    lease = Lease(path, lease_s=LEASE_S)
    assert not lease.acquire()
    assert wait_until(lease.acquire) > LEASE_S
    assert read_owner(path).pid == os.getpid()
    lease.release()
    assert list(path.parent.iterdir()) == []


def test_an_own_file_that_could_not_be_removed_is_taken_again_at_once(path):
    lease = take(path)
    text = path.read_text()
    lease.release()
    path.write_text(text)  # as if the file system had been read-only for that moment
    again = Lease(path)
    assert again.acquire()
    again.check()
    again.release()
    assert list(path.parent.iterdir()) == []


def test_a_living_file_that_is_set_aside_by_mistake_goes_back(path):
    path.touch()
    late = Lease(path, lease_s=0.2)
    assert not late.acquire()
    time.sleep(0.3)
    assert late.abandoned()
    path.unlink()
    living = take(path)  # another was faster
    assert not late.set_aside()
    living.check()
    living.release()
    assert list(path.parent.iterdir()) == []


def test_a_lease_of_a_version_with_another_length_counts_as_held(path):
    lease = take(path, lease_s=5)
    assert not Lease(path, lease_s=6).acquire()
    lease.release()


# --- many at once ---


def hold_in_turn(path, n_times, where):
    """Take the lease again and again; a line tells when it was held alone and when not."""
    lease = Lease(path)
    for _ in range(n_times):
        wait_until(lease.acquire)
        try:
            descriptor = os.open(where / "inside", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            (where / "overlap").touch()
        else:
            os.close(descriptor)
            time.sleep(0.005)
            (where / "inside").unlink()
        lease.release()


@pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads")
def test_of_several_processes_never_two_hold_a_lease(path, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hold_in_turn, args=(path, 10, tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []
