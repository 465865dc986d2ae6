"""Conformance suite of Group Sequence Policy Optimization."""
