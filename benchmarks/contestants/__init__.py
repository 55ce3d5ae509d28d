"""Who steps it: this package, torch, other packages, and the floors."""
