"""The kernel of an executed notebook: the Python that runs the study, however Jupyter is set up here."""

from __future__ import annotations

import os

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from traitlets import default

from fetal_utils.environment import set_by_front_end


class ThisPython(KernelSpecManager):
    """Knows one kernel, ``sys.executable -m ipykernel_launcher``, and looks into no folder for another.

    A kernel that is registered as ``python3`` in the home folder or on ``JUPYTER_PATH`` may be of another environment,
    and an environment may have none registered.
    """

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """That kernel, whatever the name."""
        return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())


class UnwatchedKernelManager(AsyncKernelManager):
    """Starts that kernel, and does not let it take the application around the study for one that shows its bars."""

    @default("shutdown_wait_time")
    def _shutdown_wait_time_default(self) -> float:
        """Seconds, half of them for a kernel to end by itself: its notebook has ended, and the request may be lost."""
        return 1.0

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return ThisPython(parent=self)

    async def start_kernel(self, **options) -> None:
        """Start it, without the variables of a notebook or an editor in whose terminal the study was typed."""
        environment = {name: value for name, value in os.environ.items() if not set_by_front_end(name)}
        await super().start_kernel(**{"env": environment, **options})
