"""Whole models in one design: layers after layers over one residual stream."""
