"""``moec sweep``: compile a model by many pipelines, judge each on data and time it.

:mod:`.variants` selects the pipelines, :mod:`.driver` runs them, :mod:`.file` keeps the results, :mod:`.front` finds
those that no other beats.
"""

from moec.tools.sweeping.driver import Sweep, sweep
from moec.tools.sweeping.variants import variants

__all__ = ["Sweep", "sweep", "variants"]
