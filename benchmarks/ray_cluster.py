"""A Ray cluster of one node on this machine, for what needs one."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from unittest.mock import patch

HOLDER = """
import ray, sys, tempfile
with tempfile.TemporaryDirectory() as folder:  # a short path: there are sockets in it
    context = ray.init(
        num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, _temp_dir=folder
    )
    print(context.address_info["gcs_address"], flush=True)
    sys.stdin.read()
    ray.shutdown()
"""


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    """Its address; it ends with the process that holds it. Its token is known to this process and its children alone.

    Raises:
        RuntimeError: Ray does not start, or is not installed.
    """
    command = [sys.executable, "-W", "ignore", "-c", HOLDER]
    with (
        patch.dict(os.environ, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder,
    ):
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        if not address:
            raise RuntimeError('Ray did not start: pip install "modelless[ray]"')
        yield address
        holder.communicate(timeout=60)
