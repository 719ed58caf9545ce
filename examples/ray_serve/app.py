"""An artifact as two replicas on Ray Serve: ``serve run app:chat artifact=/path/to/model.moec``.

Each replica is moec's own server, without its socket: Ray's proxy takes requests and gives each to one of them.
"""

from __future__ import annotations

import pathlib
from typing import Any

from ray import serve

import moec
from moec.serving.limits import ServerLimits
from moec.serving.server import asgi_application


@serve.deployment(num_replicas=2, max_ongoing_requests=64)
@serve.ingress()
class Replica:
    """One copy of the model. ``threads``: of its runs; a core of Ray's stands for one."""

    def __init__(self, artifact: str, threads: int) -> None:
        model = moec.load(artifact, threads=threads)
        name = pathlib.Path(artifact).stem
        self._application, _ = asgi_application(model, name=name, key=None, limits=ServerLimits())

    def __serve_build_asgi_app__(self) -> Any:
        return self._application


def chat(arguments: dict[str, str]) -> serve.Application:
    """Make the application of the arguments of ``serve run``: ``artifact``, a path, and ``threads`` of each replica."""
    threads = int(arguments.get("threads", "1"))
    replicas = Replica.options(ray_actor_options={"num_cpus": threads})
    return replicas.bind(str(pathlib.Path(arguments["artifact"]).resolve()), threads)
