"""Compiles the pure modules that every query passes, and the simulator's loop, with mypyc, if there is a C compiler.

Compiled or not, they are the same modules and decide the same (``tests/contract/test_compiled.py``); compiled, a
decision takes about half the time (``docs/decisions/0004-compiled-modules.md``). ``MODELLESS_COMPILE=0`` leaves them as
they are.

A module can be compiled when nobody reads its dataclasses by reflection (:mod:`modelless.structure` does, of messages),
no other class than ours derives from its classes, and nobody replaces its functions while it runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup

COMPILED = (
    "broker/alike.py",
    "broker/batcher.py",
    "broker/calls.py",
    "broker/canary.py",
    "broker/catalog.py",
    "broker/conditions.py",
    "broker/core.py",
    "broker/demand.py",
    "broker/devices.py",
    "broker/fairness.py",
    "broker/gathering.py",
    "broker/groups.py",
    "broker/intake.py",
    "broker/jobs.py",
    "broker/ledger.py",
    "broker/offsets.py",
    "broker/pace.py",
    "broker/prices.py",
    "broker/profiles.py",
    "broker/quotas.py",
    "broker/ranking.py",
    "broker/selector.py",
    "broker/shadows.py",
    "broker/statistics.py",
    "broker/stragglers.py",
    "broker/usage.py",
    "broker/usual.py",
    "broker/versions.py",
    "broker/view.py",
    "broker/wants.py",
    "broker/worth.py",
    "modelless/headers.py",
    "modelless/learned.py",
    "modelless/reply_template.py",
    "modelless/wire.py",
    "simulator/ours.py",
    "simulator/scenario.py",
    "simulator/world.py",
    "workers/answered.py",
    "workers/bisect.py",
    "workers/credit.py",
    "workers/device_queue.py",
    "workers/replies.py",
    "workers/rows.py",
)


def extensions() -> list[Any]:
    """Of :data:`COMPILED`; none where they cannot be built, or are not wanted."""
    if os.environ.get("MODELLESS_COMPILE", "1") == "0" or {"egg_info", "dist_info"} & set(sys.argv):
        return []  # the latter only ask what there is
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or not Path(sysconfig.get_path("include"), "Python.h").is_file():
        logging.warning("no C compiler, or no Python.h: modelless runs uncompiled, with more work for every query")
        return []
    from mypyc.build import mypycify

    # Its own settings: those of pyproject.toml name plugins that are not there while a wheel is built.
    flags = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    built: list[Any] = mypycify([*flags, *COMPILED], opt_level="1", debug_level="0", group_name="modelless.compiled")
    return built


setup(ext_modules=extensions())
