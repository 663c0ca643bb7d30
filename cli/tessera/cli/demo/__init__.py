"""The demo: one model goes from training to metered answers, for real, and everything that must fail fails."""
