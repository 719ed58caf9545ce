"""Whole models in one design, which computes layer after layer on one residual stream."""
