"""The classes: one file per rule, and in ``base.py`` what they share."""
