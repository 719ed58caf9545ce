"""Reading C++ as HLS code is written."""
