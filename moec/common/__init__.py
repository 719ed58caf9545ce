"""Helpers that several layers share. They know none of these layers."""
