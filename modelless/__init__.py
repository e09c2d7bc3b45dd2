"""modelless: managed and model-less inference serving over Apache Kafka."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelless.blocking import BlockingClient
    from modelless.client import Client
    from modelless.client_core import Result
    from modelless.config import Config, load_config
    from modelless.errors import ModellessError
    from modelless.registration import Registered, register

__version__ = "0.1.0"

__all__ = [
    "BlockingClient",
    "Client",
    "Config",
    "ModellessError",
    "Registered",
    "Result",
    "__version__",
    "load_config",
    "register",
]

_HOMES = {
    "BlockingClient": "modelless.blocking",
    "Client": "modelless.client",
    "Config": "modelless.config",
    "ModellessError": "modelless.errors",
    "Registered": "modelless.registration",
    "Result": "modelless.client_core",
    "load_config": "modelless.config",
    "register": "modelless.registration",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import modelless`` costs nothing."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modelless' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
