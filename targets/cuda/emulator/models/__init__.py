"""Which PTX instructions the emulator knows; each module registers those of one kind."""

from __future__ import annotations

from moec.targets.cuda.emulator.models import bulk as bulk
from moec.targets.cuda.emulator.models import copies as copies
from moec.targets.cuda.emulator.models import matrix as matrix
from moec.targets.cuda.emulator.models import memory_barrier as memory_barrier
from moec.targets.cuda.emulator.models import scalar as scalar
from moec.targets.cuda.emulator.models import warp_group as warp_group
