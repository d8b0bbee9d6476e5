"""Data that several test files share; session-wide ones must not be changed by a test."""

import os
from pathlib import Path

import pytest
import torch

from fetal_utils.data import Dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.phantom import write_phantom

# pytest-xdist's workers, and the kernels that they start, share the machine's cores
if n_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    n_threads = max(1, (os.cpu_count() or 1) // n_workers)
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    torch.set_num_threads(n_threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes begin the two halves of the list, as two workers begin with a half each."""
    long = {name: [one for one in items if one.path.name == f"test_{name}.py"] for name in ("notebooks", "lab")}
    rest = [one for one in items if one not in long["notebooks"] and one not in long["lab"]]
    half = max(0, len(items) // 2 - len(long["notebooks"]))
    items[:] = [*long["notebooks"], *rest[:half], *long["lab"], *rest[half:]]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real tables and images beside the repository; only ever read."""
    folder = PROJECT_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory) -> Path:
    """A phantom of 24 patients and 174 images, 64 px high."""
    folder = tmp_path_factory.mktemp("data") / "tiny_phantom"
    return write_phantom(folder, n_patients=24, seed=0, image_height=64, n_workers=1, progress=False)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_phantom, tmp_path_factory) -> Dataset:
    """The tiny phantom opened for the study."""
    return Dataset(tiny_phantom, tmp_path_factory.mktemp("cache"))
