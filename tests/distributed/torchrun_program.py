"""A program for torchrun, which ends as commands do: rank 1 of the first attempt meets a fault in its third round.

``wait`` lets the other ranks compute meanwhile, in which only the launcher can tell them; ``long FILE`` does not end by
itself, and writes the file when it has begun."""

from __future__ import annotations

import os
import sys
import time

from moec.cli.ending import end_when_told, say_error, wait_if_ending
from moec.common.errors import MoecError
from tests.distributed.rounds import run_rounds


def main() -> None:
    end_when_told()
    fault, *words = sys.argv[1:]
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def wait() -> None:
        if words == ["wait"] and is_first and rank != 1:
            time.sleep(30)

    begun, rounds = (words[1], 1_000_000) if words[:1] == ["long"] else ("", 5)
    try:
        run_rounds(rank, size, "alltoall", fault if is_first else "", begun, rounds, wait)
    except MoecError as error:
        wait_if_ending()
        say_error(str(error))
        sys.exit(2)
    print(f"rank {rank} is done")


if __name__ == "__main__":
    main()
