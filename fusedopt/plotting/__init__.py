"""Pictures: how they look, and the paths of the optimizers over loss surfaces."""
