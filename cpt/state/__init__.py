"""What is kept on disk: checkpoints, who a training is, and the model that it exports."""
