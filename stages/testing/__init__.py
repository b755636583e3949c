"""Tests that every teacher and every objective has to pass, for pytest: `armada.testing`."""
