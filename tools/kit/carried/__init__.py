"""The part of the kit that is carried to a machine with a GPU: Python 3.12 with numpy and nothing else.

``python -m carried 1`` takes the steps of a call. Each is a process of its own, ``python -m carried.kernel_step ...``.
"""
