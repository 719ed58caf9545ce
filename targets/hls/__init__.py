"""The FPGA target: projects of HLS C++ for MoE blocks, attention blocks and whole models."""
