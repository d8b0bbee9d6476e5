"""The example for a batch system: what a job asks for (no batch system is needed to see that)."""

import importlib.util

import pytest

from fetal_utils.environment import PROJECT_ROOT

pytest.importorskip("dask_jobqueue")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("slurm_example", PROJECT_ROOT / "examples" / "slurm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job_script(example, *arguments):
    with example.open_cluster(example.parse_arguments(list(arguments))) as cluster:
        return cluster.job_script()


def test_a_job_asks_for_what_it_is_told_and_computes_one_run_with_all_its_cores(example):
    script = job_script(example, "--cpus", "6", "--memory", "16GB", "--walltime", "03:00:00", "--queue", "night")
    for line in ("#SBATCH -p night", "#SBATCH --cpus-per-task=6", "#SBATCH --mem=15G", "#SBATCH -t 03:00:00"):
        assert line in script
    assert "export OMP_NUM_THREADS=6" in script
    assert "--nthreads 1" in script
    assert script.rstrip().endswith("--memory-limit 0")  # the last one counts
    assert "gpu" not in script


def test_a_job_has_a_gpu_where_that_is_asked_for(example):
    assert "#SBATCH --gres=gpu:1" in job_script(example, "--gpu")


def test_the_study_gets_what_follows_the_dashes_and_the_address(example, monkeypatch):
    given = []
    monkeypatch.setattr(example, "study", lambda arguments: given.extend(arguments) or 3)
    monkeypatch.setattr(example.SLURMCluster, "adapt", lambda self, **jobs: given.append(jobs))
    assert example.main(["--jobs", "7", "--", "--preset", "smoke"]) == 3
    assert given[:4] == [{"minimum_jobs": 7, "maximum_jobs": 7}, "--preset", "smoke", "--scheduler"]
    assert given[4].startswith("tcp://")
