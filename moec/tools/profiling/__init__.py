"""Measuring a model's layers on data: ``moec profile``.

The model is compiled with what its layers read as outputs beside its own (``taps``) and run on the data; what each
expert makes of its rows is computed here and added up (``sums``); at the end the error of every candidate format is
measured, expert by expert (``formats``).
"""

from moec.tools.profiling.driver import FORMATS, Measured, measure

__all__ = ["FORMATS", "Measured", "measure"]
