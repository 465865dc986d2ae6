"""Tests of the examples, in a reduced form."""
