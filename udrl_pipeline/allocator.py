"""How memory is kept on Linux: with the process, instead of mapped and zeroed anew for every large tensor.

On a CPU each step of sampling or training takes and frees tensors of tens of megabytes. glibc maps such blocks one by one and
gives them back at once, so that a step spends up to half of its time on page faults (docs/decisions.md has the measurement).
The variables must stand in the environment before a process starts; elsewhere than on glibc they mean nothing.
"""

ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
