"""What other packages store: read as it is, by these files alone, and without those packages."""
