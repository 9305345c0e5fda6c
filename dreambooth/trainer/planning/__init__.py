"""All that is said before the first write."""
