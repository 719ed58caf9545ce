"""``moec serve``: an artifact over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from moec.cli.ending import call_when_told
from moec.cli.options import Artifact, Emulate, KeepCounts, Resident, Threads


def serve(
    artifact: Artifact,
    host: Annotated[
        str, typer.Option(help="Listen at this address of the machine. The default answers this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Listen at this port; 0 chooses a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MOEC_API_KEY", help="Answer only requests with this key. Other users see options."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in requests. Default: the artifact's.")] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="Compute at most this many texts together.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Hold at most this many tokens, of all texts.")] = 32_768,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Generate at most this many tokens for a request.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Let this many requests wait; refuse further ones.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, help="Refuse bodies of more bytes.")] = 1 << 20,
    max_seconds: Annotated[int, typer.Option(min=1, help="End a request that takes longer.")] = 600,
    grace: Annotated[int, typer.Option(min=1, help="Seconds that texts have to end after SIGTERM or Ctrl-C.")] = 20,
    threads: Threads = None,
    resident: Resident = None,
    keep_counts: KeepCounts = None,
    emulate: Emulate = False,
) -> None:
    """Answer requests over HTTP in the form of OpenAI's API.

    Texts of several requests share each step. The artifact has to be compiled with --batches. SIGTERM and Ctrl-C let
    texts in progress end, a second one ends at once.
    """
    from moec.artifacts.loading import load
    from moec.serving.limits import ServerLimits
    from moec.serving.server import serve as serve_model

    limits = ServerLimits(max_sequences, max_tokens, max_new_tokens, max_waiting, max_body, max_seconds, grace)
    model_name = name or artifact.resolve().stem
    model = load(artifact, threads=threads, resident=resident, keep_counts=keep_counts, emulate=emulate)
    try:
        serve_model(
            model,
            name=model_name,
            host=host,
            port=port,
            key=api_key,
            limits=limits,
            told_to_stop=call_when_told,
            on_start=lambda address: print(f"serving {model_name} at {address}/v1", flush=True),
        )
    finally:
        model.save_counts()
