"""Simulators of FPGA projects: C simulation, and simulation with clocks."""
