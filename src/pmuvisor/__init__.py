"""KVM's virtualization of arm64 performance-monitoring hardware, as a Python program that boots real guests."""

__version__ = "0.1.0"
