"""The example of Ray Serve: two replicas, of which one is killed. Skipped without ray, which is no dependency."""

from __future__ import annotations

import pathlib
import runpy
import socket

import pytest

import moec

from .served import NAME, wait_for

APP = pathlib.Path(__file__).parents[2] / "examples/ray_serve/app.py"
CHAT = [{"role": "user", "content": "hello there"}]


@pytest.mark.nightly
def test_two_replicas_of_which_one_is_killed(model, tmp_path):
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    openai = pytest.importorskip("openai")
    model.save(tmp_path / f"{NAME}.moec")
    (expected,) = moec.generate(model, [CHAT], max_new_tokens=20)

    def replicas() -> set[str]:
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return {name for name in names if "#Replica#" in name}

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=3, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(runpy.run_path(str(APP))["chat"]({"artifact": str(tmp_path / f"{NAME}.moec")}))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5, timeout=60)

        def ask() -> None:
            asked = {"model": NAME, "messages": CHAT, "max_tokens": 20, "temperature": 0}
            assert client.chat.completions.create(**asked).choices[0].message.content == expected.text
            parts = client.chat.completions.create(stream=True, **asked)
            assert "".join(part.choices[0].delta.content or "" for part in parts) == expected.text

        before = replicas()
        assert len(before) == 2
        for _ in range(4):
            ask()
        ray.kill(ray.get_actor(min(before), namespace="serve"))
        for _ in range(4):
            ask()
        wait_for(lambda: len(replicas() - {min(before)}) == 2)
        ask()
    finally:
        serve.shutdown()
        ray.shutdown()
