"""Names of artifacts that several parts of the package use."""

LOSSES = "visualizations/07_training_loss.png"  # the original's name for it
PREDICTION = "visualizations/08_prediction.png"
COMPONENTS = "visualizations/13_mse_per_frequency.png"
# Figures that MLflow's UI shows side by side for several runs, and the key of each there.
COMPARED = {LOSSES: "training_loss", PREDICTION: "prediction", COMPONENTS: "mse_per_frequency"}
CHECKPOINTS = "checkpoints"  # the folder of a run's checkpoints
OUTBOX = "outbox.jsonl"  # in the folder of a run
