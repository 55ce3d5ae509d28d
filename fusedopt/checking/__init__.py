"""The rows, which list the optimizers, and how kernels are compared with the reference."""
