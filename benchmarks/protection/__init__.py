"""Benchmarks of the vendor's side: what protection costs, what it withholds, and what attacks get back."""
