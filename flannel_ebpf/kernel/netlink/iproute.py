"""pyroute2's IPRoute without the rest of it.

`import pyroute2` also imports its database on SQLite, conntrack, WireGuard and more, which takes 6 MB of a
daemon that asks for none of it. So the package stands here without its start, until somebody asks for more.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """The package: its modules can be imported; a name that its start would bring brings it."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(name)
        if importlib.util.find_spec(f"{self.__name__}.{name}"):
            return importlib.import_module(f"{self.__name__}.{name}")
        self.__class__ = ModuleType  # type: ignore[assignment]  # it is an ordinary one from now on
        spec.loader.exec_module(self)
        return getattr(self, name)


def _stand_in() -> None:
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or "pyroute2" in sys.modules:
        return
    package = _Package("pyroute2")
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    sys.modules["pyroute2"] = package


_stand_in()

from pyroute2.iproute.linux import IPRoute  # noqa: E402 - after the stand-in
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402 - likewise

__all__ = ["IPRoute", "NetlinkError"]
