"""A GPU for torch, where there is none: the stand-in for CUDA's runtime.

Tensors have the device ``cuda`` and lie in the stand-in's memory, which the host cannot touch.
fusedopt steps them with its CUDA engine. torch's own operations on them are those for the CPU, and
are carried out at once, after what is queued in the current stream.
"""
