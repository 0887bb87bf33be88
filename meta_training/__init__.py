"""The meta-training job: learns a rater by meta-gradients, exports it and measures its worth."""
