"""One device's work: events in, segments of its program run, results out."""
