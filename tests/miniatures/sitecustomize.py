"""Lets every Python of a test find the specifications of the miniature methods."""

from pathlib import Path

from diffbook_lib import specs

specs.__path__.append(str(Path(__file__).parent / "specs"))
