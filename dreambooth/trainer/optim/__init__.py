"""Optimizers as a table, the ways to step them, and what goes with a step: rates, schedules, averages."""
