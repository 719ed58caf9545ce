"""The linter of HLS C++, and its rules."""
