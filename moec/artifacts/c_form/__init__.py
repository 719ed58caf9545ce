"""Programs as C libraries: one generated file per program and a small runtime of moec's own, built by a C compiler."""
