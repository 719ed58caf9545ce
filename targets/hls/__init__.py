"""The FPGA target: MoE blocks as projects of HLS C++."""
