"""The user's photos and captions, looked at, cut to buckets, and encoded once."""
