"""Signal model, windows, and the Bayes-optimal estimator."""
