"""Packages of an installation: every folder with code. Those at the top are imported as parts of ``moec``, which
``pyproject.toml`` cannot say without a list of all of them; everything else is there."""

from setuptools import find_packages, setup

PARTS = ("passes", "simulators", "targets")

setup(
    package_dir={f"moec.{part}": part for part in PARTS},
    packages=[
        *find_packages(include=["moec", "moec.*"]),
        *(f"moec.{name}" for part in PARTS for name in find_packages(include=[part, f"{part}.*"])),
    ],
)
