"""Measurements of a model's layers on data: the ``.moeprof`` file, and its readers for passes.

``keys`` identifies the layers of graphs and profiles, ``measures`` describes the measurements of a layer, ``file``
writes, reads and merges profiles. :mod:`moec.tools.profiling` makes profiles; passes that use data read nothing else.
"""

from moec.profiles.file import Profile

__all__ = ["Profile"]
