"""What was measured of a model's layers on data: the ``.moeprof`` file, and how passes read it.

``keys`` says which layer of a graph is which of a profile, ``measures`` what is known of a layer, ``file`` how it is
written, read and merged. Profiles are made by :mod:`moec.tools.profiling`; passes that use data read nothing else.
"""

from moec.profile.file import Profile

__all__ = ["Profile"]
