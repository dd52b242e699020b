"""Tests that take minutes: lost nodes, frozen drivers, killed trainings: scripts/bench long."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-m", "long", f"--rootdir={Path(__file__).parents[1]}", *sys.argv[1:]]))
