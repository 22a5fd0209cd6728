"""Tests of vt_fast; ``tests._support`` is what they share."""
