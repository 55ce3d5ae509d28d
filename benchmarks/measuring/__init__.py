"""How it is timed and checked."""
