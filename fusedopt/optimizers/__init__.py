"""The classes: one file a rule, and in ``base.py`` what they share."""
