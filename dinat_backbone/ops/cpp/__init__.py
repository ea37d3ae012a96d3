"""The C++ of the CPU kernel, and how it becomes a library."""
