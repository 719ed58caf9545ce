"""Models of PTX instructions; importing a module registers those of one kind."""

from __future__ import annotations

from moec.simulators.cuda.models import block_scaled as block_scaled
from moec.simulators.cuda.models import bulk as bulk
from moec.simulators.cuda.models import cluster as cluster
from moec.simulators.cuda.models import copies as copies
from moec.simulators.cuda.models import matrix as matrix
from moec.simulators.cuda.models import memory_barrier as memory_barrier
from moec.simulators.cuda.models import scalar as scalar
from moec.simulators.cuda.models import tensor_memory as tensor_memory
from moec.simulators.cuda.models import warp_group as warp_group
