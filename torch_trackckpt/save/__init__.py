"""The way out: plan, staging, write, commit, in this order."""
