"""One model by itself: a replica with a model from a folder, without Ray, registry or broker.

What the images of `everloop package` run: the same doors, and the same model behind them, as on the platform.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everloop_inference.addresses import must_be_free
from everloop_inference.domain import Production, Wanted
from everloop_inference.policies import load_policies
from everloop_inference.ports import Report
from everloop_inference.replica import Replica
from everloop_inference.settings import PackagedSettings
from everloop_runtime import telemetry
from everloop_runtime.service import Component, Stopper, run

__all__ = ["VERSION", "Package", "Server", "assemble", "main"]

VERSION = "version.json"
"""Which version a package holds."""


@dataclass(frozen=True)
class Package:
    """A folder with one version of a model; registry and artifact store of the replica that serves it.

    It holds `model.onnx`, `manifest.json`, `golden.json`, the pipeline's YAML file, and `version.json`: the fields of
    `Wanted`.
    """

    folder: Path
    wanted: Wanted

    @classmethod
    def read(cls, folder: Path) -> Package:
        """Opens a package.

        Raises:
            OSError, ValueError, TypeError: the folder holds none.
        """
        return cls(folder, Wanted(**json.loads((folder / VERSION).read_bytes())))

    def production(self) -> Production:
        """See `ports.Registry`."""
        return Production([self.wanted])

    def changes(self) -> Iterator[None]:
        """See `ports.Registry`; there are none."""
        return iter(())

    def report(self, report: Report) -> bool:
        """See `ports.Registry`; there is never a trial."""
        return False

    def close(self) -> None:
        """See `ports.Registry`; it holds nothing."""

    def download(self, wanted: Wanted, folder: Path) -> None:
        """See `ports.Artifacts`."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


class Server(Component):
    """The replica, as a part of a process that ends when its model cannot serve."""

    name = "model"

    def __init__(self, replica: Replica, wanted: Wanted, addresses: Sequence[str] = ()) -> None:
        """Takes the replica, what it must serve, and the addresses that are to be its own."""
        self._replica = replica
        self._wanted = wanted
        self._addresses = addresses

    def start(self, stopper: Stopper) -> None:
        """Returns when predictions are answered.

        Raises:
            RuntimeError: the model cannot serve, as the log says, or an address is taken or cannot be bound.
        """
        for address in self._addresses:
            must_be_free(address)
        self._replica.start()
        serving = self._replica.models.serving.get(self._wanted.model)
        if serving is None or serving.wanted != self._wanted:
            self._replica.stop()
            raise RuntimeError(f"{self._wanted.model} version {self._wanted.version} cannot serve")

    def stop(self) -> None:
        """Answers what has come."""
        self._replica.stop()


def assemble(settings: PackagedSettings, *, listens: bool = True) -> tuple[Replica, Server]:
    """Puts the replica of a package together, and what starts it.

    Args:
        settings: name the folder of the package.
        listens: whether callers reach it by its addresses; otherwise by `Replica.http` and `Replica.rpc` alone.

    Raises:
        OSError, ValueError, TypeError: the folder holds no package.
    """
    package = Package.read(settings.model_dir)
    model = package.wanted.model
    policy = replace(load_policies(settings.model_dir)[model], pool=None)
    if not settings.kafka_bootstrap:
        policy = replace(policy, log_sample=0.0)
    only = "" if listens else model
    replica = Replica(settings, {model: policy}, only=only, registry=package, artifacts=package)
    addresses = (settings.http_address, settings.predict_grpc_address) if listens else ()
    return replica, Server(replica, package.wanted, addresses)


def main() -> int:
    """Serves until it is told to stop; returns the exit status."""
    settings = PackagedSettings.load()
    telemetry.configure("inference", settings.log_level)
    _, server = assemble(settings)
    return run([server])


if __name__ == "__main__":
    sys.exit(main())
