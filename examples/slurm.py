"""A study whose runs are computed in jobs of a SLURM cluster.

``python examples/slurm.py --jobs 8 --walltime 12:00:00 -- --preset paper --data-dir D --results-dir R``

What follows ``--`` are the options of `fetal_utils.study`. Start it where ``sbatch`` can be called, for as long as the
study takes: a login node in ``tmux``, or a small job. Data and results must lie on a file system that all nodes share.
Other batch systems: dask-jobqueue has classes with the same options for PBS, SGE, LSF, HTCondor and more.
"""

from __future__ import annotations

import argparse
import sys

from dask_jobqueue import SLURMCluster

from fetal_utils.study import main as study


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="jobs, each of which computes one run at a time")
    parser.add_argument("--cpus", type=int, default=4, help="cores of a job, for the threads of its arithmetic")
    parser.add_argument("--memory", default="12GB", help="memory of a job")
    parser.add_argument("--walltime", default="08:00:00", help="after which a job is replaced by a new one")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each job")
    parser.add_argument("study", nargs="*", help="after --: options of fetal_utils.study")
    return parser.parse_args(arguments)


def open_cluster(options: argparse.Namespace) -> SLURMCluster:
    """A scheduler in this process whose workers are jobs; none is submitted yet."""
    return SLURMCluster(
        queue=options.queue,
        cores=1,  # runs at a time
        processes=1,
        job_cpu=options.cpus,
        memory=options.memory,
        walltime=options.walltime,
        python=sys.executable,
        worker_extra_args=["--memory-limit", "0"],  # SLURM watches the memory
        job_script_prologue=[f"export OMP_NUM_THREADS={options.cpus}"],
        job_extra_directives=["--gres=gpu:1"] if options.gpu else [],
    )


def main(arguments: list[str] | None = None) -> int:
    """The study's exit status."""
    options = parse_arguments(arguments)
    with open_cluster(options) as cluster:
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)  # a job that ends is replaced
        return study([*options.study, "--scheduler", cluster.scheduler_address])


if __name__ == "__main__":
    sys.exit(main())
