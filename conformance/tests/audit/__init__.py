"""Tests of the audit of recorded runs."""
