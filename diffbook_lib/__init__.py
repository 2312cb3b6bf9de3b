"""diffbook_lib: the library that the diffbook chapters and run notebooks share."""

__version__ = "0.1.0"
