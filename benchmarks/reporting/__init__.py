"""How a result is shown: tables, pictures, comparisons."""
