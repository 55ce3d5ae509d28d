"""How long a step takes, beside torch's and beside the memory that it has to move.

Installed as ``fusedopt.benchmarks``; ``fusedopt bench`` runs it.
"""
