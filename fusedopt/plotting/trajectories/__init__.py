"""Every optimizer's path over a loss surface, from real runs: ``fusedopt trajectories``."""
