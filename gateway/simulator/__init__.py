"""The three providers, faithful to their public behaviour, with their own caches, limits, faults and bill."""
