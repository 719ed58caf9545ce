"""``moec profile``: measurements of a model's layers on data.

The model is compiled with the inputs of its layers as further outputs (``taps``) and run on the data. Each expert's
results on its rows are computed here and summed (``sums``). At the end the error of every candidate format is measured,
expert by expert (``formats``).
"""

from moec.tools.profiling.driver import FORMATS, Measured, profile

__all__ = ["FORMATS", "Measured", "profile"]
