"""What the commands of benchmarks/ share: programs measured by turns, models made for them, tables."""
