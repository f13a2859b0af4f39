"""The way back: match, assign, status, in this order."""
