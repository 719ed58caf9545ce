"""``moec sweep``: a model after many pipelines, each judged on data and timed.

:mod:`.variants` says which pipelines, :mod:`.driver` runs them, :mod:`.file` keeps what came out, :mod:`.front` finds
those that no other beats.
"""

from moec.tools.sweeping.driver import Sweep, sweep
from moec.tools.sweeping.variants import variants

__all__ = ["Sweep", "sweep", "variants"]
