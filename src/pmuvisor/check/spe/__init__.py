"""The second family of small machines: one profiling unit a CPU, which a host and its guests have in turn."""
