"""Running projects: as C simulation, or with clocks."""
