"""Benchmarks: modules run with `python -m benchmarks.NAME`, each printing a table and writing its JSON result.

Everything is measured side by side in one run and reported as ratios; on shared machines absolute numbers mean little.
"""
