"""All rewrites; importing this package fills the registry."""

from . import gathers, no_ops, products, routers, spellings, structure, weights, whole

__all__ = ["gathers", "no_ops", "products", "routers", "spellings", "structure", "weights", "whole"]
